"""Promises of the model: what it computes, what trains, what it remembers."""
