"""The programs of the `hjepa` command: their flags, help, and start."""
