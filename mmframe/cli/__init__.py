"""The command line: `lightning`, `mmframe` and `python -m mmframe`."""
