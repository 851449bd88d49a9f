"""QuantizeLinear and DequantizeLinear: written, read back, checked, and simulated where a runtime lacks them."""
