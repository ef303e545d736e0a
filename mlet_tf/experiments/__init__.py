"""Sweeps, statistics and plots."""
