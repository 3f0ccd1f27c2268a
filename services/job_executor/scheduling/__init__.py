"""Which task executor runs a task: pure policies, no I/O, no clock."""
