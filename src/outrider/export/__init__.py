"""Heads and settings as vLLM and SGLang load them."""
