"""Trimtab: searches, layer by layer, how to compress a model so that it meets a budget on your hardware."""
