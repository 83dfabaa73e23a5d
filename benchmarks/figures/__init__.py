"""The figures of docs/PERFORMANCE.md: what is asked of every kernel and phase, and what this machine gives. `table.py` lists them."""
