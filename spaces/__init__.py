"""What can be chosen: layers, groups, treatments, policies, the space and its encodings."""
