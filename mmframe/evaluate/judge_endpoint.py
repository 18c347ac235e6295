"""One question to an OpenAI-compatible endpoint, and what may go wrong with it. Standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from mmframe.errors import UserError

KEY = "MMFRAME_JUDGE_KEY"
"""Environment variable of the key. It stands in no file and no message."""
LARGEST = 1 << 20
"""Bytes; no reply of a judge is longer."""


class TryAgain(Exception):
    """What may work the next time: a time-out, an overloaded server, a reply that is none.

    Args:
        reason: A few words.
        after: Seconds that the server asked to wait.
        spoke: Whether the judge itself answered, with something that is of no use.
    """

    def __init__(self, reason: str, after: float | None = None, spoke: bool = False) -> None:
        super().__init__(reason)
        self.after, self.spoke = after, spoke


class Refused(Exception):
    """The server does not want this one question: too long, filtered."""


@dataclass(frozen=True)
class Reply:
    """A judge's text, and the name of the model that the server says it came from."""

    text: str
    served: str


class Endpoint:
    """A server's chat completions.

    Args:
        url: Its base, as ``https://host/v1``; or that of chat/completions itself.
        model: Name of the judge there.
        key: Sent as a bearer token, unless it is empty.
        timeout: Seconds for one reply, all of it.
        max_tokens: Longest reply; one that is cut off there is never read.

    Raises:
        UserError: The URL is none of http or https, or holds a user's name.
    """

    def __init__(self, url: str, model: str, key: str = "", timeout: float = 60, max_tokens: int = 256) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--judge {url!r} is no URL of an endpoint; give its base, as http://localhost:8000/v1")
        if "@" in parts.netloc:
            raise UserError(f"--judge holds a user or password; give the plain URL, and the key in {KEY}")
        if not model:
            raise UserError("--judge needs --judge-model, the name of the model at that endpoint")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.url = urlunsplit((parts.scheme, parts.netloc, path + "/chat/completions", parts.query, ""))
        self.name = urlunsplit((parts.scheme, parts.netloc, path, "", ""))  # for records; a query may hold secrets
        self.model, self.timeout, self.max_tokens = model, timeout, max_tokens
        self._key = key.strip()
        self._open = urllib.request.build_opener(_NoRedirect()).open

    def ask(self, prompt: str, temperature: float = 0) -> Reply:
        """Sends one question.

        Raises:
            TryAgain, Refused: See there.
            UserError: No question will get an answer: wrong key, model or URL.
        """
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "mmframe"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(asked).encode(), headers)
        try:
            body = self._body(request)
        except urllib.error.HTTPError as error:
            self._explain(error)
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            late = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            reason = f"no reply in {self.timeout:g} s" if late else f"{getattr(error, 'reason', error) or error!r}"
            raise TryAgain(str(reason)) from error
        return self._read(body)

    def _body(self, request: urllib.request.Request) -> bytes:
        end = time.monotonic() + self.timeout
        body = b""
        with self._open(request, timeout=self.timeout) as response:
            while part := response.read1(1 << 16):  # one packet, so that a reply that drips in meets the time-out too
                body += part
                if time.monotonic() > end:
                    raise TimeoutError
                if len(body) > LARGEST:
                    raise TryAgain(f"a reply of more than {LARGEST} bytes", spoke=True)
        return body

    def _explain(self, error: urllib.error.HTTPError) -> NoReturn:
        status, said = error.code, ""
        with error, contextlib.suppress(OSError, http.client.HTTPException):
            said = error.read(300).decode(errors="replace")
        if status in (408, 409, 425, 429) or status >= 500:
            wait = error.headers.get("Retry-After") or ""
            raise TryAgain(f"HTTP {status}", after=float(wait) if wait.isdecimal() else None) from None
        if status in (400, 413, 422):
            raise Refused(f"HTTP {status}: {' '.join(said.split())[:120]}") from None
        ways = {
            401: f"set the key in {KEY}",
            403: f"the key in {KEY} may not use it",
            404: f"is the URL right, and is the model {self.model!r} served there?",
        }
        way = ways.get(status, "is that the base URL of an OpenAI-compatible endpoint?")
        raise UserError(f"judge at {self.name}: HTTP {status}; {way}") from None

    def _read(self, body: bytes) -> Reply:
        try:
            data = json.loads(body)
            choice = data["choices"][0]
            text, ended = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise TryAgain("a reply that is no chat completion", spoke=True) from None
        if ended == "length":
            raise TryAgain(f"a reply that was cut off after {self.max_tokens} tokens", spoke=True)
        if not isinstance(text, str) or not text.strip():
            raise TryAgain("an empty reply", spoke=True)
        return Reply(text, str(data.get("model") or self.model))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the host that the user named and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None
