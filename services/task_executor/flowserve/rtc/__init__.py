"""The relational tensor cache, master side: which KV is where, and who may use it. No torch."""
