"""The kv_store: the one owner of the records in Redis, and of the leases that guard them."""
