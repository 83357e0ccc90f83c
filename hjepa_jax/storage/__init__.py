"""Regular files, atomic writes, and JSON of a declared structure."""
