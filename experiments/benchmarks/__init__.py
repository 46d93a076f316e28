"""Benchmarks: every speed claim is one of these, printed as a table by a `make bench-…`."""
