"""The optimisers of the training loop."""
