"""Compiled code that knows no algorithm."""
