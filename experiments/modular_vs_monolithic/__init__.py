"""Monolithic and modular under equal budgets, one command: `python -m experiments.modular_vs_monolithic`."""
