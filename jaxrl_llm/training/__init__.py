"""One step and the loop around it: optimizers, checkpoints, metrics, randomness."""
