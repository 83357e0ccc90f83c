"""`hjepa checkpoints`: evaluates all checkpoints of runs, and draws their curves."""
