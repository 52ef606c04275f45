"""Messages, weights and checkpoints; the only room that knows Flower."""
