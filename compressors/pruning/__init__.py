"""What can be pruned, what is important, and pruning itself."""
