"""Tests mirror the packages; helpers.py has the small builders, test_contracts.py runs over the registry."""
