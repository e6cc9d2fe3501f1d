"""Contenders on a server."""
