"""Mixed-integer programs over a space: the exact best policy of additive models."""
