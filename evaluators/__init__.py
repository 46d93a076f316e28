"""What an artifact is worth: accuracy on a real runtime, latency on a real device, size, peak memory."""
