"""Pure and shared: what every process means by a block, a model and a random draw."""
