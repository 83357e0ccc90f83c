"""Losses: HJEPA, LeJEPA, floors, SIGReg and HamSIGReg."""
