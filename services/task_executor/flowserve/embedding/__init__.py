"""The engine of models that turn texts into vectors: no KV, no sampling, one step a text."""
