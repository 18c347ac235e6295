"""The paper's claims in miniature: `python -m experiments.claims` runs every grid and says which claim holds here."""
