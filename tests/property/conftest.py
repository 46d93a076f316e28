"""Fewer examples than hypothesis' default, and no deadline: the machine may be busy."""

from hypothesis import settings

settings.register_profile("trimtab", max_examples=60, deadline=None)
settings.load_profile("trimtab")
