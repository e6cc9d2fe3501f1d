"""llama.cpp as a serving engine: its programs, and the files that they read."""
