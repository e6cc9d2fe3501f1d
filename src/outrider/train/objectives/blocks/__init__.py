"""Training of networks that draft a block of tokens in one pass."""
