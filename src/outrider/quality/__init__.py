"""`outrider quality`: the price of a kind of weights in agreement, divergence and perplexity on held-out text."""
