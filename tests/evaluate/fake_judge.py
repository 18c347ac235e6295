"""A local server that answers as an LLM judge would, or as badly as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behave = Callable[[str, int], Any]
"""From a prompt and how often it came before, to what is sent; see `FakeJudge`."""


class FakeJudge:
    """What the server was asked, and how it answers.

    Args:
        behave: Gives a text, which is sent as a chat completion; a number, an HTTP status without a body; bytes, sent
            as they are with status 200; or a callable, which writes to the handler itself.

    Attributes:
        asked: Bodies of all requests, in the order in which they came.
        keys: Their Authorization headers.
        most: Largest number of requests under way at once.
    """

    def __init__(self, behave: Behave) -> None:
        self.behave, self.asked, self.keys, self.most = behave, [], [], 0
        self._running, self._lock = 0, threading.Lock()
        self.url = ""

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.asked]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self._lock:
            before = self.prompts.count(prompt)
            self.asked.append(body)
            self.keys.append(handler.headers.get("Authorization"))
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            assert handler.path == "/v1/chat/completions"
            said = self.behave(prompt, before)
            if callable(said):
                said(handler)
            elif isinstance(said, int):
                send(handler, said, b"")
            else:
                send(handler, 200, said if isinstance(said, bytes) else completion(said))
        finally:
            with self._lock:
                self._running -= 1


def completion(text: str, **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return json.dumps({"model": "judge-2026-01", "choices": [choice]}).encode()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A reply that never ends, a byte at a time."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(50):
        time.sleep(0.05)
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return


@contextmanager
def serving(behave: Behave) -> Iterator[FakeJudge]:
    """The server, while the `with` lasts."""
    judge = FakeJudge(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            judge.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
