"""Graphs in forms that later passes treat, each computing the same up to rounding."""
