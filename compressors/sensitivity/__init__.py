"""What a treatment of one layer does to the output of the model."""
