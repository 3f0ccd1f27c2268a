"""The streams to the task executors: one each, opened and closed with the view."""
