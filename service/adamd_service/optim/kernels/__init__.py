"""Kernels, which run a rule on arrays: NumPy (the reference), Numba, threads over either, CUDA source."""
