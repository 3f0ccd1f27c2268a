"""Tool calls: what a model may call, how it is made to, and how its answer is read."""
