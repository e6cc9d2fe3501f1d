"""Serving engines in the benchmark: a server process, the clients that drive it, and what it counts."""
