"""Global low rank: randomized, Nyström, Krylov–Schur."""
