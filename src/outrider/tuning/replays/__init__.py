"""Known texts, and proposers along them."""
