"""Names of the pictures and systems of `hjepa physics`, which its help lists without JAX."""

# Maps compared on an ensemble; of an energy; and of the states of trained runs.
COMPARISON = ("energy", "time_reversal", "blob", "structure", "covariance", "orbit")
OF_ENERGIES = ("surface", "heatmap")
OF_STATES = ("logdet", "slices", "norms")
PICTURES = (*COMPARISON, *OF_ENERGIES, *OF_STATES)
SYSTEMS = ("harmonic", "pendulum", "duffing", "double_well", "henon_heiles")
