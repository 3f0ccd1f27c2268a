"""What `deepflow bench` runs. A benchmark measures and reports; it asserts nothing."""
