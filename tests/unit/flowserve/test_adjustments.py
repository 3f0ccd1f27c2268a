"""What changes logits, held against transformers' processors and OpenAI's formula."""

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from services.task_executor.flowserve.sampling.adjustments import (
    Adjustments,
    TokenMasks,
    adjust,
    unpack,
)
from tests.unit.flowserve.sampling_rows import (
    EOS,
    Row,
    adjusted,
    draw_rows,
    pack,
    random_logits,
    sampling,
)

VOCAB = 60
PROMPT, ANSWER = [5, 9, 5, 11], [7, 9, 7, 7, 30]


def processed(processor: LogitsProcessor, logits: torch.Tensor) -> torch.Tensor:
    scores: torch.Tensor = processor(torch.tensor([PROMPT + ANSWER]), logits.clone())
    return scores


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_looks_at_prompt_and_answer_as_transformers_does(penalty: float) -> None:
    logits = random_logits(1, VOCAB, 1)
    ours = adjusted(logits, [Row(sampling(repetition_penalty=penalty), PROMPT, ANSWER)])
    theirs = processed(RepetitionPenaltyLogitsProcessor(penalty), logits)
    torch.testing.assert_close(ours, theirs)


def test_presence_and_frequency_look_at_the_answer_only() -> None:
    logits = random_logits(1, VOCAB, 2)
    params = sampling(presence_penalty=0.7, frequency_penalty=-0.4)
    expected = logits.clone()
    for token in set(ANSWER):
        expected[0, token] -= 0.7 + ANSWER.count(token) * -0.4
    torch.testing.assert_close(adjusted(logits, [Row(params, PROMPT, ANSWER)]), expected)


def test_all_penalties_of_rows_of_different_lengths() -> None:
    """An empty answer, a short one and a long one share a batch with a row that has none."""
    logits = random_logits(4, VOCAB, 3)
    params = sampling(repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=0.5)
    answers = [[], [8], ANSWER * 4, ANSWER]
    rows = [Row(params if i < 3 else sampling(), PROMPT, a) for i, a in enumerate(answers)]
    together = adjusted(logits, rows)
    for index, row in enumerate(rows):
        alone = adjusted(logits[index : index + 1], [row])
        assert torch.equal(together[index], alone[0])
    expected = processed(RepetitionPenaltyLogitsProcessor(1.5), logits[:1])
    for token in (7, 30):  # what `processed` knows beyond the prompt
        expected[0, token] = logits[0, token]
    torch.testing.assert_close(together[:1], expected)
    assert torch.equal(together[3], logits[3])


def test_bias_is_added_before_penalties_see_the_logit() -> None:
    logits = torch.full((1, VOCAB), -1.0)
    params = sampling(logit_bias={5: 4.0, 40: -100.0}, repetition_penalty=2.0)
    result = adjusted(logits, [Row(params, PROMPT, [])])
    assert result[0, 5] == 1.5  # (-1 + 4) / 2: it was made positive first
    assert result[0, 40] == -101.0
    assert result[0, 9] == -2.0


@pytest.mark.parametrize("min_tokens", [0, 5, 6, 20])
def test_min_tokens_forbids_the_ends_until_then_as_transformers_does(min_tokens: int) -> None:
    logits = random_logits(1, VOCAB, 4)
    params = sampling(min_tokens=min_tokens, stop_token_ids=(17, EOS))
    ours = adjusted(logits, [Row(params, PROMPT, ANSWER)])
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, [EOS, 17], device="cpu")
    assert torch.equal(ours, processed(processor, logits))


def test_ignored_eos_may_come_at_any_time_but_stop_tokens_may_not() -> None:
    logits = random_logits(1, VOCAB, 4)
    params = sampling(min_tokens=20, stop_token_ids=(17,), ignore_eos=True)
    forbidden = adjusted(logits, [Row(params, PROMPT, ANSWER)]).isinf()[0].nonzero().flatten()
    assert forbidden.tolist() == [17]


def test_rows_that_want_nothing_keep_their_logits() -> None:
    logits = random_logits(2, VOCAB, 5)
    assert adjusted(logits, [Row(sampling(), PROMPT, ANSWER)] * 2) is logits


@pytest.mark.parametrize("vocabulary", [31, 32, 33, 64])
def test_masks_are_read_bit_by_bit_from_the_smallest(vocabulary: int) -> None:
    is_allowed = torch.rand(3, vocabulary, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(unpack(pack(is_allowed), vocabulary), is_allowed)
    logits = random_logits(4, vocabulary, 6)
    masks = TokenMasks(torch.tensor([3, 0, 1]), pack(is_allowed))
    changed = adjust(logits, Adjustments(), masks)
    assert torch.equal(
        changed.isinf(), ~is_allowed[[1, 2, 2, 0]] & torch.tensor([[1], [1], [0], [1]]).bool()
    )
    assert torch.equal(changed[2], logits[2])


def test_an_end_that_is_forbidden_is_never_drawn() -> None:
    logits = torch.zeros(64, VOCAB)
    logits[:, EOS] = 20.0
    early = [Row(sampling(min_tokens=1, seed=i), PROMPT, []) for i in range(64)]
    late = [Row(sampling(min_tokens=1, seed=i), PROMPT, [4]) for i in range(64)]
    assert EOS not in draw_rows(logits, early).token_ids
    assert set(draw_rows(logits, late).token_ids.tolist()) == {EOS}
