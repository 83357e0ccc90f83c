"""Parts of your own: each example is one class that a configuration names by import path."""
