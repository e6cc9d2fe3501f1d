"""Networks that draft a block of tokens in one pass, and their heads."""
