"""Tuning a server that already runs: what its own speculation gives, and what else is predicted for its texts."""
