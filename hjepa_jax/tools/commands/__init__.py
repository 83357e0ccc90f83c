"""Commands of `hjepa`: flags, checks of what they name, and what is printed."""
