"""Features, kNN, linear probe, spectra and reports."""
