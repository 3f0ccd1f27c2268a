"""Who is in the cluster, who leads it, and how everybody learns."""
