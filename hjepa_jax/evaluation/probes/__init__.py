"""Classifiers of frozen features beside the published probe."""
