"""The ConvNeXt encoder."""
