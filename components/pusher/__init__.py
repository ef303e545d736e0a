"""Push that no server can load half of."""
