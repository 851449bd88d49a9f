"""`make gpu`: every figure and check that wants a GPU, in calls of a few minutes, resumable (docs/gpu.md)."""
