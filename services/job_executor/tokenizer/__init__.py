"""Text to token ids and back: templates, encoding, incremental text, stop strings."""
