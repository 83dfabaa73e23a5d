"""What all formats of compressed matrices share: the base class, damping, certificates, stochastic estimates, the frame of the file."""
