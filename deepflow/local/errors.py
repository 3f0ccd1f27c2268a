"""What keeps a local stack from starting or going on; each message says how to mend it."""


class StackError(Exception):
    """Nothing was started, or all of it was stopped again."""


class StackAlreadyRuns(StackError):
    """Another process holds the data folder."""


class StartupFailed(StackError):
    """A step of the start-up cannot succeed; `log_tail` is what the process at fault said last."""

    def __init__(self, message: str, *, log_file: str = "", log_tail: str = "") -> None:
        super().__init__(message)
        self.log_file = log_file
        self.log_tail = log_tail
