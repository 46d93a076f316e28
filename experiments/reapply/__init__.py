"""A policy put onto retrained weights, or onto a model whose layers have other names or have changed."""
