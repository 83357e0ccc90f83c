"""Methods to compare with: VICReg, Barlow Twins and VISReg."""
