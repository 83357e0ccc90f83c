"""Kernels in C++ for the CPU, compiled on first use; without a compiler, XLA's take their place."""
