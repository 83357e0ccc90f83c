"""File formats, read without executing what they hold."""
