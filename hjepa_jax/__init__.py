"""hjepa_jax: Hamiltonian JEPA and its SIGReg baselines in JAX and Flax."""

__version__ = "0.1.0"
