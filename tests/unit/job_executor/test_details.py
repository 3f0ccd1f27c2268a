"""Alternatives come back beside their tokens, wherever messages are cut."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from deepflow.v1 import jobs_pb2
from services.job_executor.jobs.details import Alternatives, Details
from services.job_executor.tokenizer.token_bytes import TokenBytes
from tests.integration.job_executor_rig import TokenDetail, split_details

TOPS = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([-0.5, -1.0, -2.5])), max_size=3)
TOKENS = st.lists(st.tuples(st.integers(0, 9), st.none() | TOPS), max_size=20)


def spelled(token_id: int) -> bytes:
    return b"<%d>" % token_id


def new_bytes() -> TokenBytes:
    return TokenBytes(str, {}, lambda token: spelled(int(token)))


def expected(tokens: list[tuple[int, list[tuple[int, float]] | None]]) -> list[TokenDetail]:
    return [
        (spelled(token_id), [(top, spelled(top), logprob) for top, logprob in tops or []])
        for token_id, tops in tokens
    ]


@given(TOKENS, st.data())
def test_every_token_has_its_own_wherever_a_message_ends(
    tokens: list[tuple[int, list[tuple[int, float]] | None]], data: st.DataObject
) -> None:
    columns = Alternatives()
    ids = array("I", [token_id for token_id, _ in tokens])
    for index, (_, tops) in enumerate(tokens):
        if tops is not None:  # a task executor may tell nothing of a token
            columns.add(index, [top for top, _ in tops], [logprob for _, logprob in tops])
    details = Details(columns, new_bytes())
    start = data.draw(st.integers(0, len(tokens)))
    details.skip_to(start)
    found: list[TokenDetail] = []
    while start < len(tokens):
        start = data.draw(st.integers(start + 1, len(tokens)))
        message = details.take(3, ids, start)
        assert isinstance(message, jobs_pb2.TokenDetails) and message.entry == 3
        found += split_details(message)
    assert found == expected(tokens)[len(tokens) - len(found) :]


def test_their_memory_is_counted() -> None:
    columns = Alternatives()
    columns.add(2, [5, 6], [-0.5, -1.0])
    assert columns.num_bytes == sum(
        part.itemsize * len(part) for part in (columns.counts, columns.token_ids, columns.logprobs)
    )
