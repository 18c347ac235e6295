"""Ablations: a grid of variants, trained under one budget over paired seeds, and what came of it."""
