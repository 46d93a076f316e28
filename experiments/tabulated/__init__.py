"""Tabulated problems: every policy of a small space measured once, so that searchers are compared in seconds."""
