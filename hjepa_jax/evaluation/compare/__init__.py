"""Several runs side by side as one HTML page."""
