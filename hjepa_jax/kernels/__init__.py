"""C++ kernels for the CPU, compiled on first use; XLA's operations are the fallback."""
