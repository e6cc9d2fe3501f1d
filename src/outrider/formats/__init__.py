"""Every file of a model: configs, weights, tokenizers, heads and draft models, in and out."""
