"""Import of published PyTorch checkpoints; export of features and encoders."""
