"""Atomic push: no server loads half a version."""
