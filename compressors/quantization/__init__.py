"""Integers written into the graph: ranges, scales, rounding and its refinements."""
