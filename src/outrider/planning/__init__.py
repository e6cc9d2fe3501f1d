"""`outrider plan`: what a method will gain, before anything runs."""
