"""Several ranks, each a real process, answer as one does: same greedy tokens, same logprobs."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepflow.core.sampling import Grammar, SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.engine import FlowServe, Generation
from services.task_executor.flowserve.messages import StepOutput
from tests.integration.checkpoints import Checkpoint

# Eleven blocks for four sequences of up to seven: some are put aside and taken up again.
TIGHT: dict[str, Any] = {
    "kv_blocks": 12,
    "max_sequences": 4,
    "max_step_tokens": 16,
    "cpu_threads": 1,
}
GREEDY = SamplingParams(48, temperature=0.0, ignore_eos=True, logprobs=2)
SCORED = SamplingParams(12, temperature=0.0, ignore_eos=True, logprobs=1, prompt_logprobs=1)


class Watched(FlowServe):
    """Also counts who was put aside."""

    preemptions = 0

    def _take_tokens(self, output: StepOutput) -> None:
        self.preemptions += output.preemptions
        super()._take_tokens(output)


@dataclass(frozen=True)
class Split:
    shape: str
    tensor: int
    pipeline: int
    steps_in_flight: int


SPLITS = [
    # Two ranks hold the only KV head both; the next step is planned while one runs.
    Split("llama: gqa-4, biases, narrow heads", 2, 1, 2),
    # Each end of the pipeline holds the tied table.
    Split("mistral: window of 19, gqa-4, tied", 1, 2, 2),
    # Head norms, windows by layer, 77 inner values and 257 words: nothing is even.
    Split("qwen3: every other layer slides, gqa-3", 2, 2, 2),
]


@pytest.mark.parametrize("split", SPLITS, ids=lambda it: f"{it.tensor}x{it.pipeline}")
def test_ranks_answer_as_one(tmp_path: Path, split: Split) -> None:
    checkpoint = Checkpoint(tmp_path, split.shape)
    prompts = [checkpoint.prompt(n, seed) for seed, n in enumerate((37, 1, 16, 63, 5))]
    sampling = [GREEDY, GREEDY, GREEDY, GREEDY, SCORED]
    with FlowServe(tmp_path, **TIGHT) as alone:
        expected = alone.generate(prompts, sampling)
    engine = Watched(
        tmp_path,
        **TIGHT,
        tensor_parallel=split.tensor,
        pipeline_parallel=split.pipeline,
        steps_in_flight=split.steps_in_flight,
    )
    with engine:
        check(engine.generate(prompts, sampling), expected)
        assert engine.preemptions
        [again] = engine.generate(prompts[3:4], GREEDY)
        check([again], expected[3:4])
        assert again.cached_tokens >= 48


def check(answers: list[Generation], expected: list[Generation]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.finish_reason, answer.message) == (other.finish_reason, "")
        assert answer.token_ids == other.token_ids
        assert answer.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert [list(top) for top in answer.tops] == [list(top) for top in other.tops]
        assert answer.prompt_logprobs == pytest.approx(other.prompt_logprobs, abs=1e-4)
        assert answer.prompt_ranks == other.prompt_ranks


def test_rank_0_follows_grammars_and_draws() -> None:
    """What it draws, penalties and all, the other rank goes on from."""
    shape = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}}
    asked = [
        SamplingParams(24, 0.0, grammar=Grammar("json_schema", json.dumps(shape))),
        SamplingParams(12, temperature=0.7, seed=5, top_p=0.9, repetition_penalty=1.1),
        SamplingParams(12, temperature=0.0, logit_bias={7: 30.0}, frequency_penalty=1.5),
        SamplingParams(12, 1.3, seed=2, grammar=Grammar("choice", '["yes", "no"]')),
    ]
    prompts = [list(range(10, 20)), list(range(30, 45)), [9, 9, 9], [4]]
    with FlowServe(MODEL_DIR, cpu_threads=1, kv_blocks=80) as alone:
        expected = alone.generate(prompts, asked)
    with FlowServe(MODEL_DIR, cpu_threads=2, kv_blocks=80, tensor_parallel=2) as engine:
        check(engine.generate(prompts, asked), expected)


def test_what_only_another_rank_misses_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "llama: plain")
    missing = "model.layers.0.mlp.down_proj.weight"  # of the first stage, which is not here
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({name: it for name, it in tensors.items() if name != missing}, path)
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match=f"tensor {missing} is missing"):
        FlowServe(tmp_path, pipeline_parallel=2, **TIGHT)
    new = set(threading.enumerate()) - before
    assert not [it for it in new if it.name in ("steps", "watch-ranks")]
    assert not torch.distributed.is_initialized()


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 query heads and 2 KV heads can be split over 1, 2, 4"):
        FlowServe(MODEL_DIR, tensor_parallel=3)
    with pytest.raises(ValueError, match="pipeline_parallel is 5, but must be from 1 to 4"):
        FlowServe(MODEL_DIR, pipeline_parallel=5)
    with pytest.raises(ValueError, match="emulates one accelerator"):
        FlowServe(MODEL_DIR, device="emulated:zero", tensor_parallel=2)
