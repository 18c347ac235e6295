"""Tests of the command line: recipes, static checks, runs, chains."""
