"""Hierarchical matrices: level arrays, products, direct factors, Krylov solves, error estimates, compression, reading and writing."""
