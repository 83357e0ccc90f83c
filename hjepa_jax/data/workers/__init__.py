"""Worker processes of the input pipeline: their start, their shared memory, their end."""
