"""The schema of a click log as an artifact."""
