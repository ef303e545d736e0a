"""Training of the direct table that a compressed model is compared with."""
