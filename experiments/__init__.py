"""The spec, launching, artifacts, recipes, the zoo, benchmarks and the command line."""
