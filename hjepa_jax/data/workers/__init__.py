"""Worker processes of the input pipeline: start-up, shared memory and shutdown."""
