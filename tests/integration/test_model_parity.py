"""TorchExecutor on the CPU against transformers: same greedy tokens, same logprobs."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepflow.core.model_folder import ModelFolderError
from deepflow.core.model_spec import ModelSpec, count_parameters
from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.plan import StepPlan
from tests.integration.checkpoints import SHAPES, Checkpoint, Reference
from tests.unit.flowserve.plan_driver import Driven, PlanDriver

TOKENS = 24
KV_BLOCKS = 64


@dataclass(frozen=True)
class Case:
    checkpoint: Checkpoint
    prompts: list[list[int]]
    references: list[Reference]

    def driver(self) -> PlanDriver:
        return make_driver(self.checkpoint.folder)


def make_driver(folder: Path, dtype: str = "float32") -> PlanDriver:
    # One thread: a second one on a busy machine waits for the first at every kernel.
    settings = {"kv_blocks": KV_BLOCKS, "max_sequences": 8, "cpu_threads": 1}
    load = Load("small", str(folder), "cpu", model_revision="", settings=settings, dtype=dtype)
    return PlanDriver(build_executor(load, lambda step: nullcontext())[1])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("model")
    checkpoint = Checkpoint(folder, request.param)
    prompts = [checkpoint.prompt(length, seed) for seed, length in enumerate((37, 1, 16, 63))]
    return Case(checkpoint, prompts, [checkpoint.greedy(p, TOKENS) for p in prompts])


def blocks_of(row: int) -> list[int]:
    """Six scattered blocks of 16, never the trash block, no two rows alike."""
    return [1 + (row + 8 * index) * 5 % (KV_BLOCKS - 1) for index in range(6)]


def check(driven: Driven, reference: Reference) -> None:
    assert driven.answer == reference.token_ids
    assert driven.logprobs == pytest.approx(reference.logprobs, abs=1e-4)


def test_the_shape_tells_how_many_weights_there_are(case: Case) -> None:
    spec = ModelSpec.from_folder(case.checkpoint.folder)
    assert spec.parameters == count_parameters(spec)


def test_alone_and_whole(case: Case) -> None:
    for prompt, reference in zip(case.prompts, case.references, strict=True):
        driver = case.driver()
        driven = driver.admit(3, prompt, blocks_of(3))
        driver.prefill(3)
        driver.decode([3], TOKENS - 1)
        check(driven, reference)


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunked_prefill(case: Case, chunk: int) -> None:
    driver = case.driver()
    driven = driver.admit(0, case.prompts[0], blocks_of(0))
    driver.prefill(0, chunk)
    driver.decode([0], TOKENS - 1)
    check(driven, case.references[0])


def test_mixed_batch_of_chunks_and_decodes(case: Case) -> None:
    """Row by row joins while the earlier ones decode; then all decode in changing order."""
    driver = case.driver()
    driven: list[Driven] = []
    for row, prompt in enumerate(case.prompts):
        driven.append(driver.admit(row, prompt, blocks_of(row)))
        for position in range(0, len(prompt), 11):
            chunk = min(11, len(prompt) - position)
            driver.step({row: chunk} | dict.fromkeys(range(row), 1))
    while behind := [r for r, d in enumerate(driven) if len(d.answer) < TOKENS]:
        driver.decode(behind[::-1], 1)
    for row, reference in enumerate(case.references):
        assert driven[row].answer[:TOKENS] == reference.token_ids
        assert driven[row].logprobs[:TOKENS] == pytest.approx(reference.logprobs, abs=1e-4)


def test_readmission_after_preemption(case: Case) -> None:
    driver = case.driver()
    driver.admit(1, case.prompts[3], blocks_of(1))
    first = driver.admit(0, case.prompts[0], blocks_of(0))
    driver.step({0: 37, 1: 20})
    driver.decode([0], 9)
    driver.release(0)
    driver.step({1: 43})
    again = driver.admit(0, case.prompts[0], blocks_of(5), answered=first.answer)
    driver.prefill(0, 17)
    driver.decode([1, 0], TOKENS - 11)
    assert again.answer == case.references[0].token_ids
    logprobs = first.logprobs + again.logprobs
    assert logprobs == pytest.approx(case.references[0].logprobs, abs=1e-4)


def test_shared_prefix_blocks(case: Case) -> None:
    driver = case.driver()
    driver.admit(0, case.prompts[0], blocks_of(0))
    driver.prefill(0)
    shared = driver.admit(1, case.prompts[0], blocks_of(0)[:2] + blocks_of(1)[2:], cached=32)
    driver.prefill(1)
    driver.decode([0, 1], TOKENS - 1)
    check(shared, case.references[0])


def test_drawn_tokens_do_not_depend_on_batch_or_chunks(case: Case) -> None:
    def sampling(seed: int) -> SamplingParams:
        return SamplingParams(TOKENS, temperature=0.9, top_p=0.95, seed=seed)

    together = case.driver()
    rows = [
        together.admit(row, prompt, blocks_of(row), sampling=sampling(row), choice_index=row)
        for row, prompt in enumerate(case.prompts)
    ]
    together.step({row: len(prompt) for row, prompt in enumerate(case.prompts)})
    together.decode([0, 1, 2, 3], TOKENS - 1)
    alone = case.driver()
    driven = alone.admit(6, case.prompts[2], blocks_of(6), sampling=sampling(2), choice_index=2)
    alone.prefill(6, 7)
    alone.decode([6], TOKENS - 1)
    assert driven.answer == rows[2].answer
    assert driven.answer != case.references[2].token_ids


HALVES = pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ("llama: gqa-2, tied, wide heads", torch.float16),
        ("mistral: window of 19, gqa-4, tied", torch.bfloat16),
        ("qwen2: layers named one by one, gqa-4", torch.bfloat16),
        ("qwen3: biases, yarn rope with every number", torch.bfloat16),
    ],
)


@HALVES
def test_half_precision_weights_run_in_fp32(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint(tmp_path, shape, dtype)
    prompt = checkpoint.prompt(20, seed=9)
    driver = make_driver(tmp_path)
    driven = driver.admit(0, prompt, blocks_of(0))
    driver.prefill(0)
    driver.decode([0], TOKENS - 1)
    check(driven, checkpoint.greedy(prompt, TOKENS))


@HALVES
def test_every_family_computes_in_bf16(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    """Eight bits of mantissa: the likeliest token's logprob agrees to a few hundredths."""
    checkpoint = Checkpoint(tmp_path, shape, dtype)
    driver = make_driver(tmp_path, "bfloat16")
    for row, length in enumerate((5, 37)):
        prompt = checkpoint.prompt(length, seed=row)
        driven = driver.admit(row, prompt, blocks_of(row))
        driver.prefill(row, 16)
        reference = checkpoint.greedy(prompt, 1)
        assert driven.logprobs == pytest.approx(reference.logprobs, abs=0.2)


TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("stored", ["both, alike", "both, different", "only the head"])
def test_tied_tables_may_be_stored_in_any_way(tmp_path: Path, stored: str) -> None:
    checkpoint = Checkpoint(tmp_path, "qwen2: gqa-2, tied")
    tensors = merge(tmp_path)
    tensors[HEAD] = tensors[TABLE].clone()
    if stored == "both, different":
        tensors[HEAD] = tensors[HEAD].flip(0).clone()
    if stored == "only the head":
        del tensors[TABLE]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint.reload()
    prompt = checkpoint.prompt(20, seed=9)
    driver = make_driver(tmp_path)
    driven = driver.admit(0, prompt, blocks_of(0))
    driver.prefill(0)
    driver.decode([0], TOKENS - 1)
    check(driven, checkpoint.greedy(prompt, TOKENS))


def merge(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, whose weight files are gone then."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return tensors


def test_a_model_in_one_file_needs_no_other_file_beside_it(tmp_path: Path) -> None:
    """Some authors keep a copy in a layout of their own next to it."""
    checkpoint = Checkpoint(tmp_path, "mistral: window of one block")
    save_file(merge(tmp_path), tmp_path / "model.safetensors", metadata={"format": "pt"})
    save_file({"tok_embeddings.weight": torch.ones(3)}, tmp_path / "consolidated.safetensors")
    prompt = checkpoint.prompt(20, seed=9)
    driver = make_driver(tmp_path)
    driven = driver.admit(0, prompt, blocks_of(0))
    driver.prefill(0)
    driver.decode([0], TOKENS - 1)
    check(driven, checkpoint.greedy(prompt, TOKENS))


@pytest.fixture
def spoiled(tmp_path: Path) -> tuple[Checkpoint, int]:
    """A checkpoint with one token whose embedding is not a number."""
    checkpoint = Checkpoint(tmp_path, "llama: plain")
    bad_token = 200
    rewrite(tmp_path, "model.embed_tokens.weight", lambda t: t[bad_token].fill_(float("nan")))
    return checkpoint, bad_token


def rewrite(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            change(tensors[name])
            save_file(tensors, file, metadata={"format": "pt"})


def test_a_row_that_meets_nan_fails_alone(spoiled: tuple[Checkpoint, int]) -> None:
    checkpoint, bad_token = spoiled
    prompts = [[t for t in checkpoint.prompt(30, seed) if t != bad_token] for seed in (1, 2)]
    references = [checkpoint.greedy(prompt, 8) for prompt in prompts]
    driver = make_driver(checkpoint.folder)
    rows = [driver.admit(row, prompt, blocks_of(row)) for row, prompt in enumerate(prompts)]
    driver.admit(2, [5, bad_token, 6], blocks_of(2))
    result = driver.step({0: len(prompts[0]), 2: 3, 1: len(prompts[1])})
    assert result.rows == [0, 1]
    assert list(result.failures) == [2]
    driver.decode([0, 1], 7)
    for driven, reference in zip(rows, references, strict=True):
        check(driven, reference)


def test_blocks_of_a_failed_row_serve_the_next_one(spoiled: tuple[Checkpoint, int]) -> None:
    checkpoint, bad_token = spoiled
    driver = make_driver(checkpoint.folder)
    driver.admit(0, [bad_token] * 64, blocks_of(0))
    assert driver.step({0: 64}).failures
    driver.release(0)
    prompt = [token for token in checkpoint.prompt(21, seed=4) if token != bad_token]
    driven = driver.admit(0, prompt, blocks_of(0))
    driver.prefill(0, 9)
    driver.decode([0], 7)
    check(driven, checkpoint.greedy(prompt, 8))


def test_a_plan_made_before_a_failure_was_known_still_runs(
    spoiled: tuple[Checkpoint, int],
) -> None:
    checkpoint, bad_token = spoiled
    driver = make_driver(checkpoint.folder)
    driver.admit(0, [5, bad_token], blocks_of(0))
    assert driver.step({0: 2}).failures
    ahead = StepPlan(1, rows=[0], starts=[2], counts=[1], samples=[True])
    assert driver.executor.execute(ahead).failures


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "llama: plain")
    (file, *_) = sorted(tmp_path.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(iter(tensors))
    for change, message in (
        ({name: tensors[name][:1].clone()}, "has shape"),
        ({"stranger": torch.zeros(3)}, "1 tensors have no place in the model: stranger"),
        ({name: tensors[name].to(torch.int8)}, "quantized"),
    ):
        save_file(tensors | change, file, metadata={"format": "pt"})
        with pytest.raises(ModelFolderError, match=message):
            make_driver(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != name} or {"x": torch.zeros(1)}, file)
    with pytest.raises(ModelFolderError, match=f"tensor {name} is missing"):
        make_driver(tmp_path)
