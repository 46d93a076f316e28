"""Untrained networks of known shape, whose latency and structure are what matters."""
