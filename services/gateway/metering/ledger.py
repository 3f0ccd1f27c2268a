"""What keys have used and the store has not heard of yet. Pure.

Rows go out as numbered batches. A batch that may or may not have arrived is sent again as it was,
so that the store can tell; what is used meanwhile waits for the next one.
"""

from dataclasses import dataclass

from deepflow.v1 import store_pb2

# As many as the store takes at once.
BATCH_ROWS_MAX = 1000

Name = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Batch:
    number: int
    rows: tuple[store_pb2.KeyUsage, ...]


class Ledger:
    """Rows are bounded by the keys and models that exist: nobody else gets as far as using."""

    def __init__(self) -> None:
        self._rows: dict[Name, store_pb2.KeyUsage] = {}
        self._sent: Batch | None = None
        self._number = 0

    def add(
        self, tenant: str, key_id: str, model: str, *, prompt: int, completion: int, cached: int
    ) -> None:
        name = (tenant, key_id, model)
        row = self._rows.get(name)
        if row is None:
            row = store_pb2.KeyUsage(tenant=tenant, key_id=key_id, model=model)
            self._rows[name] = row
        row.requests += 1
        row.prompt_tokens += prompt
        row.completion_tokens += completion
        row.cached_tokens += cached

    def batch(self) -> Batch | None:
        """What to send now: the one that was not confirmed, else the next; None = nothing."""
        if self._sent is None and self._rows:
            names = list(self._rows)[:BATCH_ROWS_MAX]
            self._number += 1
            self._sent = Batch(self._number, tuple(self._rows.pop(name) for name in names))
        return self._sent

    def confirm(self, batch: Batch) -> None:
        if self._sent is batch:
            self._sent = None
