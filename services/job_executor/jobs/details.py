"""What a client sees of each token of an answer beside its text: bytes and alternatives."""

from array import array
from dataclasses import dataclass, field

from deepflow.v1 import jobs_pb2
from services.job_executor.tokenizer.token_bytes import TokenBytes

ENTRY_BYTES = 8  # id and logprob of one alternative
COUNT_BYTES = 4


@dataclass(slots=True)
class Alternatives:
    """Columns of one choice: token i owns the next counts[i] items, likeliest first."""

    counts: "array[int]" = field(default_factory=lambda: array("I"))
    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    logprobs: "array[float]" = field(default_factory=lambda: array("f"))

    @property
    def num_bytes(self) -> int:
        return len(self.counts) * COUNT_BYTES + len(self.token_ids) * ENTRY_BYTES

    def add(self, index: int, token_ids: list[int], logprobs: list[float]) -> None:
        """Those of token `index`; the ones before it that were not told have none."""
        self.fill(index)
        self.counts.append(len(token_ids))
        self.token_ids.extend(token_ids)
        self.logprobs.extend(logprobs)

    def fill(self, length: int) -> None:
        self.counts.extend([0] * (length - len(self.counts)))


class Details:
    """Reads the alternatives of one choice in order, once."""

    __slots__ = ("_alternatives", "_item", "_next", "_token_bytes")

    def __init__(self, alternatives: Alternatives, token_bytes: TokenBytes) -> None:
        self._alternatives = alternatives
        self._token_bytes = token_bytes
        self._next = self._item = 0

    def skip_to(self, index: int) -> None:
        """What is before `index` is nobody's any more."""
        self._alternatives.fill(index)
        self._item += sum(self._alternatives.counts[self._next : index])
        self._next = index

    def take(self, entry: int, token_ids: "array[int]", end: int) -> jobs_pb2.TokenDetails:
        """Those of the tokens up to `end`, for entry `entry` of a batch."""
        columns, spell = self._alternatives, self._token_bytes.__getitem__
        columns.fill(end)
        counts = columns.counts[self._next : end]
        first, self._item = self._item, self._item + sum(counts)
        top_ids = columns.token_ids[first : self._item]
        details = jobs_pb2.TokenDetails(
            entry=entry,
            token_bytes=map(spell, token_ids[self._next : end]),
            top_counts=counts,
            top_token_ids=top_ids,
            top_token_bytes=map(spell, top_ids),
            top_logprobs=columns.logprobs[first : self._item],
        )
        self._next = end
        return details
