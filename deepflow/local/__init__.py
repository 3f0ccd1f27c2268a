"""The local stack: one supervisor, NATS, Redis and every service of one host."""
