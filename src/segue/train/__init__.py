"""Training: recipes, what is learned at which rate, the loop, and checkpoints that can be used at once."""
