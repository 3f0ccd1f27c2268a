"""Usage: every token reaches the store once, whatever is lost on the way."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.metering.ledger import BATCH_ROWS_MAX, Batch, Ledger


class FakeStore:
    """Adds a batch once, by its number."""

    def __init__(self) -> None:
        self.last = 0
        self.tokens = 0
        self.requests = 0

    def add(self, batch: Batch) -> None:
        if batch.number > self.last:
            self.last = batch.number
            self.tokens += sum(row.prompt_tokens + row.completion_tokens for row in batch.rows)
            self.requests += sum(row.requests for row in batch.rows)


# None: a try to send, with (it arrives, its answer arrives).
STEP = st.one_of(
    st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.none(), st.booleans(), st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_nothing_is_lost_and_nothing_counts_twice(steps: list[tuple[object, int, int]]) -> None:
    ledger, store, tokens, requests = Ledger(), FakeStore(), 0, 0
    for key, first, second in steps:
        if key is not None:
            ledger.add("t", str(key), "m", prompt=first, completion=second, cached=0)
            tokens, requests = tokens + first + second, requests + 1
        elif (batch := ledger.batch()) and first:
            store.add(batch)
            if second:
                ledger.confirm(batch)
    while batch := ledger.batch():
        store.add(batch)
        ledger.confirm(batch)
    assert (store.tokens, store.requests) == (tokens, requests)


def test_a_batch_is_as_large_as_the_store_takes() -> None:
    ledger = Ledger()
    for index in range(BATCH_ROWS_MAX + 1):
        ledger.add("t", f"key-{index}", "m", prompt=1, completion=1, cached=0)
    first = ledger.batch()
    assert first is not None and len(first.rows) == BATCH_ROWS_MAX
    assert ledger.batch() is first
    ledger.confirm(first)
    second = ledger.batch()
    assert second is not None and len(second.rows) == 1 and second.number == 2
