"""Texts that wait for a step: who is taken in, who runs next, who has left. Pure."""

from bisect import insort
from dataclasses import dataclass

from services.task_executor.flowserve.embedding.config import EmbeddingConfig
from services.task_executor.flowserve.messages import Submit


@dataclass(frozen=True, slots=True)
class Waiting:
    priority: int  # smaller runs first
    arrival: int
    handle: int
    token_ids: list[int]

    @property
    def rank(self) -> tuple[int, int]:
        return (self.priority, self.arrival)


@dataclass(frozen=True, slots=True)
class Refusal:
    message: str
    invalid: bool  # the request was at fault, not the engine


class EmbeddingQueue:
    """First come, first served among equals: nobody overtakes a text that waits for room."""

    def __init__(self, config: EmbeddingConfig) -> None:
        self._config = config
        self._waiting: list[Waiting] = []  # by rank
        self._by_handle: dict[int, Waiting] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, message: Submit) -> Refusal | None:
        """Take a text in; what cannot be run is refused, and nothing changes."""
        if message.handle in self._by_handle:
            raise ValueError(f"handle {message.handle} is submitted while a text still has it")
        if fault := find_fault(message, self._config):
            return Refusal(fault, invalid=True)
        if len(self._waiting) >= self._config.max_waiting:
            limit = self._config.max_waiting
            return Refusal(f"the engine's queue is full ({limit} texts wait)", invalid=False)
        it = Waiting(message.priority, self._arrivals, message.handle, message.prompt_token_ids)
        self._arrivals += 1
        self._by_handle[it.handle] = it
        insort(self._waiting, it, key=lambda waiting: waiting.rank)
        return None

    def cancel(self, handles: list[int]) -> list[Waiting]:
        """Those of `handles` that were still here."""
        left = [self._by_handle.pop(handle) for handle in set(handles) & self._by_handle.keys()]
        if left:
            self._waiting = [it for it in self._waiting if it.handle in self._by_handle]
        return left

    def cancel_all(self) -> list[Waiting]:
        return self.cancel(list(self._by_handle))

    def take_batch(self) -> list[Waiting]:
        """The texts of the next step, in order; at least one where anybody waits."""
        count = tokens = 0
        for it in self._waiting[: self._config.max_sequences]:
            tokens += len(it.token_ids)
            if count and tokens > self._config.max_step_tokens:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        for it in batch:
            del self._by_handle[it.handle]
        return batch


def find_fault(message: Submit, config: EmbeddingConfig) -> str:
    """A sentence for the caller; empty where the text can be run."""
    token_ids = message.prompt_token_ids
    if not message.embed:
        return "this model makes embeddings and generates no text; ask for embeddings"
    if message.context_id:
        return "a model that makes embeddings keeps no contexts"
    if not token_ids:
        return "the input is empty, but must hold at least one token"
    if len(token_ids) > config.max_tokens:
        return f"the input has {len(token_ids)} tokens, but may have {config.max_tokens}"
    for token in (min(token_ids), max(token_ids)):
        if not 0 <= token < config.vocab_size:
            return f"token id {token} is not in the vocabulary of {config.vocab_size}"
    return ""
