"""What every folder may import: errors, registry, JSON files, seeds, imports by name."""
