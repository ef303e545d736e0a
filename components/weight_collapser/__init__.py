"""Collapse of a trained model: factors out, product in."""
