"""Building a device's profile for a model: what is measured, and how well it predicts."""
