"""Image sources, augmentation and the input pipeline."""
