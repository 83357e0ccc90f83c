"""Image sources: where images and labels come from."""
