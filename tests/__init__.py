"""Tests mirror the packages; helpers.py has the small builders, contracts/ runs over the registry."""
