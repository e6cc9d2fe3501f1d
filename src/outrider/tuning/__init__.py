"""The choice of method, settings and budget for one target, one set of prompts and one machine."""
