"""Skeletons: sketches of the far field, interpolative decompositions, level by level."""
