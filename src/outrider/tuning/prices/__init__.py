"""Costs of steps, and the speedups that they predict."""
