"""File formats, read without executing any code they contain."""
