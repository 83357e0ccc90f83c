"""Random views of an image: their parameters, and their pixels on host or device."""
