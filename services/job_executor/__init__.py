"""The job executor: requests become jobs, jobs become tasks, tokens become text."""
