"""The process and its devices: where computations run, and in which order."""
