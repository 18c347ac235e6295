"""Models of mmframe inside of other projects' programs."""
