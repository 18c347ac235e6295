"""Where records come from: one format a file."""
