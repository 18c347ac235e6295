"""The pluggable pieces of mmframe, one idea a file."""
