"""Evaluation of the collapsed model and the gate before the push."""
