"""`mmframe chat`, in processes as a person or a script would use it."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from mmframe.engine import Engine
from mmframe.images import open_image
from mmframe.loading import load
from mmframe.sampling import SamplingParams

from .served import picture, tiny_model

WORDS = ["--max-tiles=3", "--max-new-tokens=8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def command(model, *words):
    return [sys.executable, "-m", "mmframe", "chat", "--model", str(model), *words]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def piped(model, elsewhere):
    """Runs a chat with the given lines as its input."""

    def call(lines, *words):
        return subprocess.run(
            command(model, *WORDS, *words), input="".join(line + "\n" for line in lines), text=True, cwd=elsewhere,
            capture_output=True, env=ENVIRONMENT, timeout=250,
        )  # fmt: skip

    return call


def stderr_of(done):
    """Its lines, without the one on the expert backend."""
    return [line for line in done.stderr.splitlines() if not line.startswith("expert backend")]


def said(model, turns):
    """What the engine says in this process; a turn is (question, pictures), None is a reset."""
    loaded = load(model)
    chat = Engine(loaded.net, loaded.processor).chat(max_tiles=3)
    answers = []
    for turn in turns:
        if turn is None:
            chat.reset()
            continue
        text, pictures = turn
        images = [open_image(path) for path in pictures]
        answers.append("".join(chat.say(text, images, SamplingParams(max_new_tokens=8))))
    return answers


def test_a_conversation_with_pictures_mistakes_and_a_reset(piped, model, elsewhere):
    for number in range(3):
        picture(elsewhere / f"{number}.png", seed=number)
    picture(elsewhere / "with space.png", 40, 12, seed=7)
    done = piped(
        [
            "what is it?",
            "and now?",
            "",
            "/image nowhere.png",
            "/image",
            "/imgae 1.png",
            "two <image> and a third <image>?",  # no picture waits: refused, and the chat goes on
            "long " * 3000,
            "/image 1.png",
            "/image with space.png",
            "what changed?",
            "/reset",
            "what is it?",
            "/help",
            "/quit",
            "never asked",
        ],
        "--image",
        "0.png",
        "2.png",
    )
    first = [("what is it?", [elsewhere / "0.png", elsewhere / "2.png"]), ("and now?", [])]
    third = ("what changed?", [elsewhere / "1.png", elsewhere / "with space.png"])
    answers = said(model, [*first, third, None, ("what is it?", [])])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line for line in lines if not line.startswith("/")] == [*answers[:3], "the conversation is forgotten",
                                                                     answers[3]]  # fmt: skip
    assert len(set(answers)) == 4 and any(line.startswith("/image PATH") for line in lines)
    mistakes = stderr_of(done)
    assert [line.startswith("error: ") for line in mistakes] == [True] * 5, done.stderr
    parts = ["nowhere.png: there is no such file", "needs the path", "/imgae is no command; did you mean '/image'?"]
    for line, part in zip(mistakes, [*parts, "2 <image>", "a context of"], strict=True):
        assert part in line


@pytest.fixture
def once(cli, model):
    """One question in this process: (answer, what is said beside it)."""

    def call(*words, of=model):
        code, out, err = cli("chat", "--model", of, *WORDS, *words)
        assert code == 0, err
        return out, err

    return call


def test_one_question_from_the_command_line(once, model, elsewhere):
    picture(elsewhere / "a.png")
    answer, told = once("--image", "a.png", "--prompt", "what is it?", "--stats")
    assert answer == said(model, [("what is it?", [elsewhere / "a.png"])])[0] + "\n"
    assert "8 tokens, 12 image tokens in 3 tiles, first after" in told and "tok/s" in told
    assert "tokens" not in once("--prompt", "what is it?")[1]


def test_sampling_and_the_system_message_reach_the_model(once, elsewhere):
    plain, _ = once("--prompt=hello")
    drawn = [once("--prompt=hello", "--temperature=2", f"--seed={seed}")[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] and len({plain, *drawn}) == 3
    stop = plain[3]
    assert once("--prompt=hello", f"--stop={stop}")[0] == plain.partition(stop)[0] + "\n"
    talker = tiny_model(elsewhere / "chatml", template="chatml")
    lengths = []
    for words in ((), ("--system=be brief",), ("--system=be so brief",), ("--system=",)):
        told = once("--prompt=hello", "--stats", *words, of=talker)[1]
        lengths.append(int(re.findall(r"prompt (\d+) tokens", told)[0]))
    assert lengths[2] == lengths[1] + 3 and lengths[3] < lengths[1]  # the template's own, if it has one, is the first


def test_ctrl_c_stops_the_answer_and_not_the_chat(model, elsewhere):
    process = subprocess.Popen(
        command(model, "--max-new-tokens=100000"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=elsewhere, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"talk\n")
    process.stdin.flush()
    first = os.read(process.stdout.fileno(), 1)  # the answer comes while it is made
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"/help\n/quit\n", timeout=250)
    assert process.returncode == 0, err
    lines = (first + out).decode().splitlines()
    assert lines[0].endswith(" [stopped]") and lines[1].startswith("/image PATH"), lines[:3]
    assert b"error" not in err and b"Traceback" not in err


def test_at_a_terminal(model, elsewhere):
    """A prompt, numbers beneath the answer, Ctrl-D leaves."""
    picture(elsewhere / "a.png")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(model, *WORDS), stdin=theirs, stdout=theirs, stderr=theirs, cwd=elsewhere, env=ENVIRONMENT
    )
    os.close(theirs)
    seen = ""

    def until(text):
        nonlocal seen
        deadline = time.monotonic() + 200
        while text not in seen:
            assert time.monotonic() < deadline and process.poll() is None, seen
            if select.select([ours], [], [], 0.5)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        before, _, seen = seen.partition(text)
        return before

    assert "parameters, float32 on cpu; /help lists the commands" in until("> ")
    os.write(ours, b"/image a.png\n")
    assert "a.png: 20x12 px, 2x1 tiles + thumbnail, 12 tokens; goes with the next question" in until("> ")
    os.write(ours, b"what is it?\n")
    before = until("tok/s")
    assert said(model, [("what is it?", [elsewhere / "a.png"])])[0] in before
    assert "\033[2m[8 tokens, 12 image tokens in 3 tiles, first after" in before
    until("> ")
    os.write(ours, b"half a line")
    until("half a line")
    process.send_signal(signal.SIGINT)  # Ctrl-C at the prompt drops what was typed
    until("> ")
    os.write(ours, b"\x04")
    try:
        while os.read(ours, 4096):
            pass
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=60) == 0
    os.close(ours)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--image", "nowhere.png"], "nowhere.png: there is no such file"),
        (["--model=nowhere"], "nowhere"),
        (["--top-p=0"], "top_p=0.0 must be above 0 and at most 1"),
        (["--prompt", ""], "--prompt is empty"),
    ],
)
def test_mistakes_are_one_line(words, part, fails, model):
    assert part in fails("chat", f"--model={model}", *words)
