"""Registering a component is getting it tested: what every component of a kind promises, over the registry."""
