"""Scores of a model on tasks: answers, their scores, and a record that says exactly what was measured."""
