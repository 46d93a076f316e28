"""The policy store: versions of policies and artifacts, which of them is in production, and how that came about."""
