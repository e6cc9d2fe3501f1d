"""Training of drafters: one loop, one file per objective."""
