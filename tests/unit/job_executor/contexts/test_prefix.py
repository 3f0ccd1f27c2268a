from hypothesis import given
from hypothesis import strategies as st

from deepflow.v1 import contexts_pb2
from services.job_executor.contexts import prefix

TOKENS = st.lists(st.integers(0, 3), max_size=30)


@given(TOKENS, TOKENS)
def test_the_common_length_is_that_of_a_plain_walk(one: list[int], other: list[int]) -> None:
    walked = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        walked += 1
    assert prefix.common_length(one, other) == walked == prefix.common_length(other, one)


@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=5))
def test_the_common_prefix_is_the_longest_that_all_have(
    shared: list[int], ends: list[list[int]]
) -> None:
    prompts = [shared + end for end in ends]
    found = prefix.common_prefix(prompts)
    count = len(found)
    assert count >= len(shared)
    assert all(prompt[:count] == found for prompt in prompts)
    longer = {tuple(prompt[: count + 1]) for prompt in prompts}
    assert len(longer) > 1 or all(len(prompt) == count for prompt in prompts) or len(prompts) == 1


@given(TOKENS, TOKENS, TOKENS)
def test_a_prompt_begins_with_a_context_exactly_where_its_tokens_do(
    kept: list[int], prompt: list[int], end: list[int]
) -> None:
    record = contexts_pb2.ContextRecord(num_tokens=len(kept), tokens_digest=prefix.digest_of(kept))
    assert prefix.begins_with(kept + end, record)
    assert prefix.begins_with(prompt, record) == (prompt[: len(kept)] == kept)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 64))
def test_a_hit_is_whole_blocks_and_leaves_a_token_to_compute(
    kept: int, behind: int, block_size: int
) -> None:
    prompt = kept + behind
    hit = prefix.expected_hit(kept, max(prompt, 1), block_size)
    assert hit % block_size == 0
    assert 0 <= hit <= kept and hit < max(prompt, 1)
    assert hit + block_size > min(kept, max(prompt, 1) - 1)


def test_without_blocks_nothing_is_expected() -> None:
    assert prefix.expected_hit(100, 200, 0) == 0
