"""Families of decoders, as their configs describe them."""
