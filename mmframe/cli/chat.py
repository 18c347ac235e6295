"""`mmframe chat`: talk to a model in the terminal, with pictures."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmframe.cli.flags import parse_flags
from mmframe.cli.serving import Served, add_model_flags, add_sampling_flags, open_model, sampling_params
from mmframe.errors import UserError, nearest

if TYPE_CHECKING:  # torch is loaded only to run something
    from PIL import Image

    from mmframe.sampling import SamplingParams

COMMANDS = {
    "/image": "PATH    the next question carries this picture; several are shown in the order given",
    "/reset": "        forget the conversation",
    "/help": "         this list",
    "/quit": "         leave, as Ctrl-D does; Ctrl-C stops an answer",
}
EPILOG = "In the chat:\n" + "\n".join(f"  {name} {text}" for name, text in COMMANDS.items())
# what a model says must not steer the terminal
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def main(words: list[str]) -> int:
    """Runs `mmframe chat ...`."""
    args = parse_flags("chat", words, _describe)
    if args is None:
        return 0
    from mmframe.images import image_size

    params = sampling_params(args)
    if args.prompt is not None and not args.prompt.strip() and not args.image:
        raise UserError("chat: --prompt is empty; write a question or give an --image")
    for path in args.image:
        image_size(path)  # a mistake shows before a large model is loaded
    served = open_model(args)
    talk = Talk(served, params, args.system, args.stats or sys.stdin.isatty())
    for path in args.image:
        talk.attach(path)
    if args.prompt is not None:
        talk.ask(args.prompt)
        return 0
    return talk.loop()


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.description = "Talk to a model in the terminal. Questions may be piped in, one a line."
    parser.epilog = EPILOG
    parser.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="FILE", help="pictures of the first question"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and leave")
    parser.add_argument("--stats", action="store_true", help="tokens, tiles and times, also without a terminal")
    add_model_flags(parser)
    add_sampling_flags(parser)


class Talk:
    """A conversation at the terminal.

    Args:
        served: The model.
        params: How to answer.
        system: System message; None takes the template's.
        stats: Show the numbers of each answer.
    """

    def __init__(self, served: Served, params: SamplingParams, system: str | None, stats: bool) -> None:
        self.served, self.params, self.stats = served, params, stats
        self.chat = served.engine.chat(system, served.max_tiles)
        self.waiting: list[Image.Image] = []
        """Pictures of the next question."""

    def loop(self) -> int:
        """Reads questions and commands until the input ends. A mistake is one line, and the chat goes on."""
        terminal = sys.stdin.isatty()
        if terminal:
            print(f"{self.served.describe()}; /help lists the commands, Ctrl-D leaves")
        while (line := _read(terminal)) is not None:
            try:
                if not self.obey(line.strip()):
                    break
            except UserError as error:
                sys.stdout.flush()
                print(f"error: {error}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                print("\nstopped")
        return 0

    def obey(self, line: str) -> bool:
        """Does what one line says; False when it says to leave."""
        command, _, rest = line.partition(" ")
        if not line.startswith("/"):
            if line:
                self.ask(line)
        elif command == "/image":
            self.attach(rest.strip().strip("'\""))
        elif command == "/reset":
            self.chat.reset()
            self.waiting.clear()
            print("the conversation is forgotten")
        elif command == "/help":
            print("\n".join(f"{name} {text}" for name, text in COMMANDS.items()))
        elif command == "/quit":
            return False
        else:
            hint = nearest(command, COMMANDS) or "/help lists the commands"
            raise UserError(f"{command} is no command; {hint}")
        return True

    def attach(self, path: str) -> None:
        """Opens a picture for the next question."""
        from mmframe.cli.picture_facts import picture_facts
        from mmframe.images import open_image

        if not path:
            raise UserError("/image needs the path of a picture")
        image = open_image(path)
        facts = picture_facts(image.size, self.served.model, self.chat.max_tiles)
        self.waiting.append(image)
        if sys.stdin.isatty():
            print(f"{path}: {facts}; goes with the next question")

    def ask(self, text: str) -> None:
        """Asks, and writes the answer while it comes. Pictures of a question that failed wait for the next one."""
        from mmframe.cli.turn import Turn

        images, self.waiting = self.waiting, []
        try:
            turn = Turn(self.served, self.chat, text, images, self.params)
            with _stop_on_ctrl_c() as stopped:
                for piece in turn:
                    sys.stdout.write(piece.translate(_CONTROL))
                    sys.stdout.flush()
                    if stopped:
                        break
        except UserError:
            self.waiting = images
            raise
        print(" [stopped]" if stopped else "", flush=True)
        if self.stats:
            dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
            print(f"{dim}[{turn.facts}]{plain}", file=sys.stderr, flush=True)


def _read(terminal: bool) -> str | None:
    """The next line; None at the end of the input."""
    if not terminal:
        return sys.stdin.readline() or None
    try:
        import readline  # noqa: F401 - gives input() a history and keys to edit with
    except ImportError:  # Windows
        pass
    try:
        return input("> ")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:  # drops what was typed
        print()
        return ""


@contextmanager
def _stop_on_ctrl_c() -> Iterator[list[int]]:
    """Notes Ctrl-C in the list that it gives: the answer ends between two tokens. The second time it ends at once."""
    stopped: list[int] = []

    def note(signum: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(signum)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
