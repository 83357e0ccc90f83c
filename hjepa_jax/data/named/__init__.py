"""Datasets known by name, each with a reader of the format it is published in."""
