"""Sums of Kronecker products, layer pair by layer pair."""
