"""What is counted for all gateways together: limits by the minute, slots, and usage."""
