"""Joules of an inference: counted by the hardware, or from a table."""
