"""Keys and tenants: how keys look, where their records lie and how they are changed."""
