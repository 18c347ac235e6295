"""Losses beside the objective."""
