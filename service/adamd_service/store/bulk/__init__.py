"""Bulk in files: large bytes lie in recycled extents of a directory, and the store keeps only their names."""
