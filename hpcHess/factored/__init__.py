"""The exact factored form of a curvature matrix: products (`none`), solves in the data space (`data-woodbury`)."""
