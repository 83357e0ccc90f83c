"""Writers of metrics: `metrics.jsonl`, TensorBoard events, and optional trackers."""
