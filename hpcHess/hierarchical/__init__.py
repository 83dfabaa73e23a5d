"""Hierarchical matrices: level arrays, products, Woodbury factors, error estimates, compression, reading and writing."""
