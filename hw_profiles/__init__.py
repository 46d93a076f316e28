"""Devices: what they are, what they accept, how long things take on them. Knows kernels, never models."""
