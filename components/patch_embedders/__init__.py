"""Pixels to visual tokens."""
