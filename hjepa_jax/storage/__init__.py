"""Bounded reads of regular files, atomic writes, and JSON with a declared structure."""
