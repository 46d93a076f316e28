"""Recipes: ready specs, runnable from anywhere by name."""
