"""`hjepa plan`: what a training step takes on a machine that is not at hand."""
