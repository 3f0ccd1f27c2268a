"""What an answer shows beside its text; known before its first token."""

import msgspec


class Wanted(msgspec.Struct, frozen=True):
    is_chat: bool
    token_ids: bool = False
    echo: bool = False
    # How many alternatives beside each token; None = no log probabilities at all.
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def is_detailed(self) -> bool:
        """Whether single tokens matter, and not only the text that they make."""
        return self.token_ids or self.logprobs is not None
