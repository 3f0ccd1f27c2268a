"""Which task executor holds which prefix, as its numbered KV events tell it."""
