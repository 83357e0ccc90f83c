"""The train step, its state and optimizer, and what prepares and resumes a run."""
