"""Devices of other machines: the agent that offers a runtime over HTTP, and the device that reaches it."""
