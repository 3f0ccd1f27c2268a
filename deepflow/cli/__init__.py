"""The `deepflow` command: one file per verb."""
