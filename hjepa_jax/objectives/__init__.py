"""Losses: HJEPA, LeJEPA, regularizers, SIGReg and HamSIGReg."""
