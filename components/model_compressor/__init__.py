"""Compression of the collapsed model to a budget."""
