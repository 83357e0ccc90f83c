"""What a run is and where it stands, read from its files."""
