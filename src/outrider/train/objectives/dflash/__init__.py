"""Training of DFlash networks."""
