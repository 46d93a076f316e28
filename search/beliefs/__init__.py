"""What a search believes of each quantity of every policy, after the trials so far."""
