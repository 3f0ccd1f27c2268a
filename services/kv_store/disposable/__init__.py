"""Values that may be lost: bounded, evictable, apart from the records."""
