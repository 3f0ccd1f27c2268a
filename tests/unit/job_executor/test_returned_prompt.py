"""The columns of a prompt: each position once and in order, or a failure that says where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import Internal, InvalidRequest
from deepflow.v1 import tasks_pb2
from services.job_executor.jobs import returned_prompt
from services.job_executor.jobs.returned_prompt import ReturnedPrompt
from services.job_executor.tokenizer.token_bytes import TokenBytes

SPELL = TokenBytes(str, {}, lambda token: token.encode())


def told(first: int, count: int, num_tops: int = 2) -> tasks_pb2.PromptLogprobs:
    """Position p has logprob -p, rank p and alternatives 10p, 10p + 1, …"""
    positions = range(first, first + count)
    tops = [10 * p + k for p in positions for k in range(num_tops)]
    return tasks_pb2.PromptLogprobs(
        handle=1,
        first_position=first,
        logprobs=[-float(p) for p in positions],
        ranks=list(positions),
        top_token_ids=tops,
        top_logprobs=[-0.5] * len(tops),
    )


def make(length: int, *, wants_logprobs: bool = True) -> ReturnedPrompt:
    return ReturnedPrompt(list(range(length)), "text", SPELL, wants_logprobs=wants_logprobs)


@given(st.integers(1, 20), st.integers(0, 3), st.data())
def test_pieces_in_order_make_the_whole(length: int, num_tops: int, data: st.DataObject) -> None:
    prompt, position = make(length), 1
    while position < length:
        assert not prompt.is_complete
        count = data.draw(st.integers(1, length - position))
        prompt.add(told(position, count, num_tops))
        position += count
    assert prompt.is_complete
    message = prompt.to_proto(9, 4)
    assert (message.handle, message.choice_index, message.text) == (9, 4, "text")
    assert list(message.token_ids) == list(range(length))
    assert list(message.token_bytes) == [b"%d" % i for i in range(length)]
    assert list(message.logprobs) == [-float(p) for p in range(1, length)]
    assert list(message.ranks) == list(range(1, length))
    assert list(message.top_counts) == [num_tops] * (length - 1)
    tops = [10 * p + k for p in range(1, length) for k in range(num_tops)]
    assert list(message.top_token_ids) == tops
    assert list(message.top_token_bytes) == [b"%d" % top for top in tops]
    assert len(message.top_logprobs) == len(tops)


@pytest.mark.parametrize(
    "later", [told(4, 1), told(2, 1), told(3, 4)], ids=["gap", "again", "too many"]
)
def test_a_piece_that_does_not_go_on_is_a_failure(later: tasks_pb2.PromptLogprobs) -> None:
    prompt = make(6)
    prompt.add(told(1, 2))
    with pytest.raises(Internal, match="token 3 of 6 was due"):
        prompt.add(later)


def test_columns_of_different_lengths_are_a_failure() -> None:
    uneven = told(1, 2)
    uneven.top_token_ids.append(1)
    short = told(1, 2)
    del short.ranks[1]
    for bad in (uneven, short):
        with pytest.raises(Internal, match="differ in length"):
            make(6).add(bad)


def test_a_prompt_that_lacks_positions_is_not_sent() -> None:
    prompt = make(4)
    prompt.add(told(1, 2))
    with pytest.raises(Internal, match="prompt token 3"):
        prompt.to_proto(1, 0)


def test_a_task_placed_anew_begins_anew() -> None:
    prompt = make(4)
    prompt.add(told(1, 2))
    prompt.reset()
    prompt.add(told(1, 3))
    assert list(prompt.to_proto(1, 0).ranks) == [1, 2, 3]


def test_without_logprobs_a_prompt_is_complete_at_once() -> None:
    prompt = make(3, wants_logprobs=False)
    assert prompt.is_complete
    prompt.add(told(1, 2))
    assert not prompt.to_proto(1, 0).logprobs


def test_what_no_message_can_carry_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returned_prompt, "PROMPT_BYTES_MAX", 20)
    prompt = make(4)
    prompt.add(told(1, 3))
    with pytest.raises(InvalidRequest) as caught:
        prompt.to_proto(1, 0)
    assert caught.value.param == "prompt_logprobs"
