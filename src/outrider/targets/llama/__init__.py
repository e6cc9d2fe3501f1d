"""A target that llama.cpp computes: any architecture that it runs, from a GGUF file."""
