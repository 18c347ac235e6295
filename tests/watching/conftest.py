"""Fixtures of the command line's tests, which these use too."""

from tests.cli.conftest import cli, elsewhere, fails  # noqa: F401
