"""Devices, processes and the order of computations."""
