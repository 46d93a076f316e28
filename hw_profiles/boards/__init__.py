"""Devices without a runtime here: what they accept and how they fuse."""
