"""Loads and unloads that are under way."""
