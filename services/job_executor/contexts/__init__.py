"""Explicit contexts: made once, kept by name, put before the input of whoever names them."""
