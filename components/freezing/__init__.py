"""Which parameters train in a stage."""
