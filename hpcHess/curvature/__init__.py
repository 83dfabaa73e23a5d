"""Curvature operators: products, diagonal, entries, probes."""
