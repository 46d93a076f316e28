"""What treatments make of a weight, and how it is stored."""
