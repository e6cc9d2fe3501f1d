"""Entries of safetensors headers."""
