"""Conversion of GGUF files to Hugging Face checkpoints."""
