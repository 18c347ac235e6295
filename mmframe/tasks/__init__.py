"""Benchmarks: what is asked, how, and by which metric; a YAML file each, in recipes/tasks."""
