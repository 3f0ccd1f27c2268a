"""The engine's parameters and log probabilities on the CPU, held against transformers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.engine import FlowServe, Generation
from tests.integration.checkpoints import Checkpoint

TOKENS = 16
GREEDY: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("model"), "llama: plain")


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    return [checkpoint.prompt(length, seed) for seed, length in enumerate((37, 1, 16, 29))]


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Any:
    load: Any = LlamaForCausalLM.from_pretrained
    return load(checkpoint.folder, dtype=torch.float32).eval()


def open_engine(folder: Path, **settings: int) -> FlowServe:
    usual = {"kv_blocks": 64, "max_sequences": 8, "cpu_threads": 1}
    return FlowServe(folder, "cpu", "float32", **(usual | settings))


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Iterator[FlowServe]:
    with open_engine(checkpoint.folder, max_step_tokens=11) as engine:
        yield engine


def raw_logprobs(reference: Any, token_ids: list[int]) -> torch.Tensor:
    """[tokens, vocab]: of whatever comes after each of them."""
    with torch.no_grad():
        logits: torch.Tensor = reference(torch.tensor([token_ids])).logits[0]
    return logits.float().log_softmax(-1)


def check_tops(told: dict[int, float], expected: torch.Tensor, count: int) -> None:
    best = expected.topk(count)
    assert list(told) == best.indices.tolist()
    assert list(told.values()) == pytest.approx(best.values.tolist(), abs=1e-4)


def check_prompt(answer: Generation, prompt: list[int], raw: torch.Tensor, count: int) -> None:
    own = raw[torch.arange(len(prompt) - 1), prompt[1:]]
    assert answer.prompt_logprobs == pytest.approx(own.tolist(), abs=1e-4)
    ranks = 1 + (raw[: len(prompt) - 1] > own[:, None]).sum(-1)
    assert answer.prompt_ranks == ranks.tolist()
    assert len(answer.prompt_tops) == (len(prompt) - 1 if count else 0)
    for told, expected in zip(answer.prompt_tops, raw, strict=False):
        check_tops(told, expected, count)


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_prompts_are_scored_in_chunks_and_together(
    engine: FlowServe, reference: Any, prompts: list[list[int]], max_tokens: int
) -> None:
    """Each prompt twice: what the first leaves in the cache is no reason to skip a score."""
    counts = [3, 0, 20, 1]
    samplings = [
        SamplingParams(max_tokens, temperature=0.0, ignore_eos=True, prompt_logprobs=count)
        for count in counts
    ]
    for _ in range(2):
        answers = engine.generate(prompts, samplings)
        for prompt, answer, count in zip(prompts, answers, counts, strict=True):
            assert (answer.finish_reason, len(answer.token_ids)) == ("length", max_tokens)
            check_prompt(answer, prompt, raw_logprobs(reference, prompt), count)


def test_drawn_tokens_come_with_raw_logprobs_and_alternatives(
    engine: FlowServe, reference: Any, prompts: list[list[int]]
) -> None:
    hot = SamplingParams(
        8, temperature=1.7, top_k=50, presence_penalty=1.0, seed=9, ignore_eos=True, logprobs=5
    )
    answers = engine.generate(prompts, [hot, SamplingParams(8, ignore_eos=True), hot, hot])
    assert answers[1].tops == []
    for prompt, answer in zip(prompts, answers, strict=True):
        raw = raw_logprobs(reference, prompt + answer.token_ids)[len(prompt) - 1 : -1]
        own = raw[torch.arange(len(answer.token_ids)), answer.token_ids]
        assert answer.logprobs == pytest.approx(own.tolist(), abs=1e-4)
        for told, expected in zip(answer.tops, raw, strict=False):
            check_tops(told, expected, 5)


def test_repetition_is_penalised_as_transformers_does(
    engine: FlowServe, reference: Any, prompts: list[list[int]]
) -> None:
    answers = engine.generate(prompts, SamplingParams(**GREEDY, repetition_penalty=1.4))
    plain = engine.generate(prompts, SamplingParams(**GREEDY))
    assert [a.token_ids for a in answers] != [a.token_ids for a in plain]
    for prompt, answer in zip(prompts, answers, strict=True):
        output = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            repetition_penalty=1.4,
            max_new_tokens=TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert answer.token_ids == output[0, len(prompt) :].tolist()


def penalised(logits: torch.Tensor, answer: list[int]) -> torch.Tensor:
    for token in set(answer):
        logits[token] -= 1.5 + 0.8 * answer.count(token)
    return logits


def biased(logits: torch.Tensor, answer: list[int]) -> torch.Tensor:
    logits[[17, 44]] += torch.tensor([9.0, -100.0])
    return logits


@pytest.mark.parametrize(
    ("change", "params"),
    [
        (penalised, {"presence_penalty": 1.5, "frequency_penalty": 0.8}),
        (biased, {"logit_bias": {17: 9.0, 44: -100.0}}),
    ],
)
def test_penalties_and_bias_follow_their_formulas(
    engine: FlowServe,
    reference: Any,
    prompts: list[list[int]],
    change: Callable[[torch.Tensor, list[int]], torch.Tensor],
    params: dict[str, Any],
) -> None:
    answers = engine.generate(prompts, SamplingParams(**(GREEDY | params)))
    for prompt, answer in zip(prompts, answers, strict=True):
        known: list[int] = []
        while len(known) < TOKENS:
            with torch.no_grad():
                logits = reference(torch.tensor([prompt + known])).logits[0, -1]
            known.append(int(change(logits, known).argmax()))
        assert answer.token_ids == known


def test_a_preempted_sequence_keeps_its_penalties_scores_and_draws(
    checkpoint: Checkpoint, engine: FlowServe, prompts: list[list[int]]
) -> None:
    """In a cache too small for all they are put aside and taken up again."""
    samplings = [
        SamplingParams(
            40,
            temperature=0.8,
            seed=seed,
            ignore_eos=True,
            repetition_penalty=1.2,
            frequency_penalty=0.5,
            prompt_logprobs=1,
            logprobs=2,
        )
        for seed in range(4)
    ]
    expected = engine.generate(prompts, samplings)
    with open_engine(checkpoint.folder, kv_blocks=11, max_tokens=128) as crowded:
        answers = crowded.generate(prompts, samplings)
    for answer, undisturbed in zip(answers, expected, strict=True):
        assert answer.token_ids == undisturbed.token_ids
        assert answer.logprobs == pytest.approx(undisturbed.logprobs, abs=1e-4)
        assert answer.prompt_ranks == undisturbed.prompt_ranks
        assert [list(top) for top in answer.tops] == [list(top) for top in undisturbed.tops]


def test_as_many_samplings_as_prompts(engine: FlowServe, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="shorter"):
        engine.generate(prompts, [SamplingParams(2)])
    (answer,) = engine.generate(prompts[:1], SamplingParams(2, temperature=0.0, ignore_eos=True))
    assert len(answer.token_ids) == 2
