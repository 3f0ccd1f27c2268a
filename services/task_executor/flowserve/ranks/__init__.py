"""Further ranks of one engine: processes that hold a share of the model and run its plans."""
