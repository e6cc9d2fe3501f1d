"""Values, JSON and files: checks, display, reading and atomic writing."""
