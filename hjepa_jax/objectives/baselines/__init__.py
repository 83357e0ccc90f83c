"""Losses of the baselines: VICReg, Barlow Twins and VISReg."""
