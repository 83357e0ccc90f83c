"""Hamiltonians, symplectic integrators and phase-space geometry."""
