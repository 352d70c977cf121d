"""Loops over slices of contributions: their protocol, NumPy (the reference), and Numba with the same bits."""
