"""Trained encoders: what they take, and the folders that they are shared as."""
