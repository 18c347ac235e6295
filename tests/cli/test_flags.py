"""Flags of the small commands: written out, checked before anything loads, told in one line."""

import argparse

import pytest

from mmframe.cli.flags import parse_flags, whole
from mmframe.errors import UserError


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source")
    parser.add_argument("--max-tiles", type=whole(1), default=12)
    parser.add_argument("--model", required=True)


def parse(*words):
    return parse_flags("try", list(words), describe)


def message(*words):
    with pytest.raises(UserError) as caught:
        parse(*words)
    return str(caught.value)


def test_values_and_switches():
    args = parse("a", "--model", "m", "--max-tiles=3", "--debug")
    assert (args.source, args.model, args.max_tiles, args.debug) == ("a", "m", 3, True)
    assert parse("-", "--model=--m").model == "--m"
    assert parse("- a sentence", "--model", "-5 + 3 = ?").model == "-5 + 3 = ?"


def test_an_unknown_flag_is_told_with_the_nearest_one():
    assert message("a", "--modle=m").startswith("try: unknown flag --modle; did you mean '--model'?")
    assert "unknown flag --max" in message("a", "--model=m", "--max", "3")  # no abbreviations
    assert "does not know what to do with 'b'" in message("a", "b", "--model=m")


def test_missing_and_wrong_values():
    assert "required: source, --model" in message()
    assert "--max-tiles: '0' is no whole number of at least 1" in message("a", "--model=m", "--max-tiles=0")
    assert "expected one argument" in message("a", "--model")


def test_help_is_printed_and_nothing_else_is_done(capsys):
    assert parse("--help") is None and parse("--nonsense", "-h") is None
    out = capsys.readouterr().out
    assert "usage: mmframe try" in out and "--max-tiles" in out and "--debug" in out


@pytest.mark.parametrize("command", ["chat", "generate", "web"])
def test_commands_know_their_flags_before_torch_is_needed(command, cli, fails):
    code, out, _ = cli(command, "--help")
    assert code == 0 and "--model M" in out and "--temperature" in out
    assert f"{command}: unknown flag --temprature; did you mean '--temperature'?" in fails(command, "--temprature=1")
    assert "required: " in fails(command)
    line = fails(command, "--model=m", "--data=d", "--out=o", "--dtype=fp16") if command == "generate" else fails(
        command, "--model=m", "--dtype=fp16"
    )  # fmt: skip
    assert "fp16 gives NaN in this model family" in line and "bf16" in line
