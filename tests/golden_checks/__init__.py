"""Checks against golden vectors, collected by `tests/test_golden.py`."""
