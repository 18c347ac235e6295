"""`mmframe web`: a chat page in the browser that also shows what a picture becomes. Needs gradio (extra: web)."""

from __future__ import annotations

import argparse
import os
import socket
import threading
from importlib.util import find_spec

from mmframe.cli.flags import parse_flags, whole
from mmframe.cli.serving import add_model_flags, add_sampling_flags, open_model, sampling_params
from mmframe.errors import UserError


def main(words: list[str]) -> int:
    """Runs `mmframe web ...` until Ctrl-C."""
    args = parse_flags("web", words, _describe)
    if args is None:
        return 0
    if find_spec("gradio") is None:
        raise UserError("web: gradio is not installed; run: pip install 'mmframe[web]'")
    be_quiet()
    check_port(args.host, args.port)  # a mistake shows before a large model is loaded
    params = sampling_params(args)
    served = open_model(args)
    from mmframe.cli.web_page import Page, launch

    page = Page(served, params, args.system).build()
    launch(page, args.host, args.port)
    print(f"web: {served.describe()}, at {page.local_url} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)
    return 0


def check_port(host: str, port: int) -> None:
    """Raises a UserError where no server can listen at host:port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"web: cannot listen at {host}:{port} ({error}); take another --port or --host") from error


def be_quiet() -> None:
    """Nothing of what is asked or shown leaves this machine; gradio and the hub library would send statistics."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.description = "A chat page: upload a picture, talk, and see the tiles and tokens that the model gets."
    parser.add_argument("--port", type=whole(1), default=7860, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="0.0.0.0 lets other machines in (default: %(default)s)"
    )
    add_model_flags(parser)
    add_sampling_flags(parser)
