"""A trained or compressed network on the integer and sparse kernels of a GPU."""
