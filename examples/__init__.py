"""Examples of custom parts: each is one class that a configuration names by import path."""
