"""`python -m mmframe`: the same main() as the console scripts, always in the right interpreter."""

from mmframe.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
