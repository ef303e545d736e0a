"""A look at the model from outside before it is pushed."""
