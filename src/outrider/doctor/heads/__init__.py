"""Suspects of each kind of drafter: what is often wrong with it, as variants to try."""
