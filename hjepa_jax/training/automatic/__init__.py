"""Settings that are chosen from the images and the device before a training."""
