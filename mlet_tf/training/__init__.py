"""Training: building a model, its optimizers, the loop, checkpoints, several processes."""
