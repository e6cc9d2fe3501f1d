"""Outrider's proposers inside vLLM, and vLLM's environment."""
