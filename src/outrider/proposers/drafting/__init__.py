"""Drafting with a network: chains, trees, and the tokens that a drafter has not read yet."""
