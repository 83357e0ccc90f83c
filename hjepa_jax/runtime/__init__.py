"""Devices, processes, checkpoints, and logs."""
