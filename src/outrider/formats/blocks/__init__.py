"""Networks on disk that draft a block of tokens in one pass."""
