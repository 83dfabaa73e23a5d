"""Collective agreement, ownership, exchanges, shared windows, random numbers by global index."""
