"""A check of the exported model, from outside, before it is pushed."""
