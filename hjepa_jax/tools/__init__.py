"""Programs that examine the package itself: fuzzers of its settings and files."""
