"""The tasks of one task executor whose prompts are not computed yet."""


class Unstarted:
    """By handle, with the tokens that each has to compute before its first of its own."""

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, handle: int, tokens: int) -> None:
        self._tokens[handle] = tokens
        self.tokens += tokens

    def discard(self, handle: int) -> None:
        """It began, or ended without that; a second time does nothing."""
        self.tokens -= self._tokens.pop(handle, 0)
