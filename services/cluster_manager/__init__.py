"""The cluster manager: keeps what should run running, and tells everybody who is there."""
