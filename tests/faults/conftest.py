"""Runs in this process and in processes of their own, each test in a folder of its own."""

from tests.cli.conftest import cli, elsewhere, fails  # noqa: F401  fixtures
