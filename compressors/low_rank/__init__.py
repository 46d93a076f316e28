"""Layers taken apart into smaller ones."""
