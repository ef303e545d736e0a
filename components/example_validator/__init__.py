"""Data validation that ends the run."""
