"""Statistics of activations over data, and what is decided on them: ranges, scales, rounding."""
