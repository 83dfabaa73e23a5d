"""Benchmarks of whole cases against the machine's ceilings measured in the same run (README.md). Not installed."""
