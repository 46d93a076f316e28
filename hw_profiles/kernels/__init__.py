"""Kernels as executed, what they took, and the files that tell."""
