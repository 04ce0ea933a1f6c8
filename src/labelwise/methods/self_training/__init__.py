"""Self-training and its second round, the noisy student."""
