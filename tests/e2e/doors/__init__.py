"""What a stranger finds: who listens, and what answers to whom."""
