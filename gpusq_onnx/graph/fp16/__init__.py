"""FP16: its numbers, which nodes compute in it, and the rewrite of a graph."""
