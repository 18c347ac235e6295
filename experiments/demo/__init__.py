"""The demo: train EViP++ on real pictures, evaluate every stage, write a report. `python -m experiments.demo`."""
