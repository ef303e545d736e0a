"""Data validation that fails the run on an anomaly."""
