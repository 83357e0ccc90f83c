"""The Vision Transformer encoder."""
