"""Two models on the same data: outputs, inner tensors, gates."""
