"""Scripts that run in the environment of other people's clients (`make clients` builds it)."""
