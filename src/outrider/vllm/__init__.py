"""Our own drafters inside vLLM, and its environment."""
