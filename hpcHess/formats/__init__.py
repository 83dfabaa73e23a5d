"""The registry of the formats, their sums, and the choice between them."""
