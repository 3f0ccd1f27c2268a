"""What should be served: requests for it, the facts of its models, its records."""
