"""Prompts and texts: the workloads of the benchmark, and the data that a target writes for training."""
