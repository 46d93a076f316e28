"""The training after compression: a torch model learns to live with the treatment of its layers."""
