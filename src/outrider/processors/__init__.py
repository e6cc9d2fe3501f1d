"""Processors: what changes the logits of one request before they are sampled, as a function of its tokens."""
