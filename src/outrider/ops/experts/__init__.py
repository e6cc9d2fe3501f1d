"""Mixtures of experts on each back end."""
