"""Tests mirror the packages; tests/helpers.py has the small builders, tests/test_contracts.py runs over the registry."""
