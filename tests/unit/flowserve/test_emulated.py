import random
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.core.mixing import uniform_bits, uniforms
from deepflow.core.model_spec import ModelSpec
from deepflow.core.sampling import SamplingParams, uniform
from services.task_executor.devices.emulated.profiles import (
    H200,
    ZERO,
    AcceleratorProfile,
    Roofline,
    StepWork,
)
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.emulated_executor import EmulatedExecutor
from services.task_executor.flowserve.executor.row_table import PlanError
from services.task_executor.flowserve.plan import StepPlan
from tests.unit.flowserve.model_specs import write_config
from tests.unit.flowserve.plan_driver import GREEDY, PlanDriver

PROMPT = [(7 * i * i + 3) % 1000 for i in range(41)]
BLOCKS = [3, 1, 8, 5, 2]  # 5 blocks of 16 hold 80 tokens
STEPS = 30


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec.from_folder(write_config(tmp_path_factory.mktemp("model")))


@pytest.fixture
def build(spec: ModelSpec) -> Callable[[], PlanDriver]:
    return lambda: PlanDriver(build_executor(spec))


def build_executor(
    spec: ModelSpec,
    profile: AcceleratorProfile = ZERO,
    block_size: int = 16,
    eos_token_ids: tuple[int, ...] = (),
) -> EmulatedExecutor:
    config = EngineConfig(
        block_size=block_size,
        kv_blocks=64,
        max_tokens=128,
        vocab_size=spec.vocab_size,
        max_sequences=8,
        eos_token_ids=eos_token_ids,
    )
    return EmulatedExecutor(spec, profile, config)


def undisturbed(driver: PlanDriver, sampling: SamplingParams = GREEDY) -> list[int]:
    driven = driver.admit(0, PROMPT, BLOCKS, sampling=sampling)
    driver.prefill(0)
    driver.decode([0], STEPS - 1)
    return driven.answer


def test_tokens_stay_in_the_vocabulary_and_vary(build: Callable[[], PlanDriver]) -> None:
    answer = undisturbed(build())
    assert all(0 <= token < 1000 for token in answer)
    assert len(set(answer)) > STEPS // 2


@given(chunk=st.integers(1, 60), seed=st.integers(0, 1000), row=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_chunks_rows_and_physical_blocks_change_nothing(
    spec: ModelSpec, chunk: int, seed: int, row: int
) -> None:
    driver = PlanDriver(build_executor(spec))
    driven = driver.admit(row, PROMPT, random.Random(seed).sample(range(1, 64), 5))
    driver.prefill(row, chunk)
    driver.decode([row], STEPS - 1)
    assert driven.answer == undisturbed(PlanDriver(build_executor(spec)))


@pytest.mark.parametrize("block_size", [7, 128])
def test_the_block_size_changes_nothing(spec: ModelSpec, block_size: int) -> None:
    driver = PlanDriver(build_executor(spec, block_size=block_size))
    driven = driver.admit(0, PROMPT, list(range(1, 2 + 80 // block_size)))
    driver.prefill(0)
    driver.decode([0], STEPS - 1)
    assert driven.answer == undisturbed(PlanDriver(build_executor(spec)))


def test_neighbours_change_nothing(build: Callable[[], PlanDriver]) -> None:
    driver = build()
    neighbours = [driver.admit(r, PROMPT[r:], [10 * r + i for i in range(5)]) for r in (2, 4)]
    driver.prefill(2, 9)
    driven = driver.admit(0, PROMPT, BLOCKS)
    driver.step({0: 20, 2: 1})
    driver.step({4: len(PROMPT) - 4, 0: len(PROMPT) - 20, 2: 1})
    driver.decode([4, 0, 2], STEPS - 1)
    assert driven.answer == undisturbed(build())
    assert driven.answer != neighbours[0].answer != neighbours[1].answer


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_readmission_continues_as_if_nothing_had_happened(
    build: Callable[[], PlanDriver], temperature: float
) -> None:
    sampling = SamplingParams(1000, temperature=temperature, seed=11)
    driver = build()
    first = driver.admit(0, PROMPT, BLOCKS, sampling=sampling)
    driver.prefill(0)
    driver.decode([0], 9)
    driver.release(0)
    again = driver.admit(5, PROMPT, [20, 21, 22, 23, 24], answered=first.answer, sampling=sampling)
    driver.prefill(5, 13)
    driver.decode([5], STEPS - 11)
    assert again.answer == undisturbed(build(), sampling)


def test_shared_prefix_blocks_are_read_not_recomputed(build: Callable[[], PlanDriver]) -> None:
    driver = build()
    driver.admit(0, PROMPT, BLOCKS)
    driver.prefill(0)
    sharer = driver.admit(1, PROMPT, [3, 1, 30, 31, 32], cached=32)
    driver.prefill(1)
    driver.decode([1], STEPS - 1)
    assert sharer.answer == undisturbed(build())


def swap_blocks(executor: EmulatedExecutor) -> None:
    executor.cache.cells[[3, 1]] = executor.cache.cells[[1, 3]]


def lose_block(executor: EmulatedExecutor) -> None:
    executor.cache.cells[8] = 0


def flip_bit(executor: EmulatedExecutor) -> None:
    executor.cache.cells[3, 0] ^= np.uint64(1)


def lose_newest(executor: EmulatedExecutor) -> None:
    """Token 40, the last of the prompt, lies at offset 8 of the third block."""
    executor.cache.cells[8, 8] = 0


@pytest.mark.parametrize("damage", [swap_blocks, lose_block, flip_bit, lose_newest])
def test_damaged_memory_changes_the_answer(
    spec: ModelSpec, damage: Callable[[EmulatedExecutor], None]
) -> None:
    executor = build_executor(spec)
    driver = PlanDriver(executor)
    driven = driver.admit(0, PROMPT, BLOCKS)
    driver.prefill(0)
    damage(executor)
    driver.decode([0], STEPS - 1)
    expected = undisturbed(PlanDriver(build_executor(spec)))
    assert driven.answer[0] == expected[0]
    assert driven.answer[1:] != expected[1:]
    assert sum(a == b for a, b in zip(driven.answer[1:], expected[1:], strict=True)) <= 2


def test_blocks_in_the_wrong_order_change_the_answer(build: Callable[[], PlanDriver]) -> None:
    driver = build()
    driver.admit(0, PROMPT, BLOCKS)
    driver.prefill(0)
    swapped = driver.admit(1, PROMPT, [1, 3, 30, 31, 32], cached=32)
    driver.prefill(1)
    assert swapped.answer != undisturbed(build())[:1]


def test_what_lies_behind_the_context_is_not_read(spec: ModelSpec) -> None:
    executor = build_executor(spec)
    executor.cache.cells[:] = np.random.default_rng(0).integers(1, 1 << 60, (64, 16))
    assert undisturbed(PlanDriver(executor)) == undisturbed(PlanDriver(build_executor(spec)))


def test_seed_and_choice_matter_only_with_a_temperature(build: Callable[[], PlanDriver]) -> None:
    def run(temperature: float, seed: int, choice: int) -> tuple[int, ...]:
        driver = build()
        sampling = SamplingParams(1000, temperature=temperature, seed=seed)
        driven = driver.admit(0, PROMPT, BLOCKS, sampling=sampling, choice_index=choice)
        driver.prefill(0)
        driver.decode([0], 5)
        return tuple(driven.answer)

    variants = [(1, 0), (2, 0), (1, 1), (2**64 - 1, 3)]
    assert len({run(1.0, *variant) for variant in variants}) == len(variants)
    assert len({run(0.0, *variant) for variant in variants}) == 1


@given(seed=st.integers(0, 2**64 - 1), choice=st.integers(0, 127), position=st.integers(0, 1 << 20))
def test_vectorised_draws_equal_the_common_ones(seed: int, choice: int, position: int) -> None:
    columns = [np.array([value], dtype=np.uint64) for value in (seed, choice, position)]
    assert float(uniform_bits(*columns)[0]) * 2.0**-53 == uniform(seed, choice, position)
    indexes = [np.array([value], dtype=np.int64) for value in (choice, position)]
    assert uniforms(columns[0], *indexes)[0] == uniform(seed, choice, position)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_no_end_is_drawn_before_min_tokens(
    spec: ModelSpec, temperature: float, ignore_eos: bool
) -> None:
    """Other tokens stay what they are until the first that is drawn anew."""
    plain = SamplingParams(1000, temperature=temperature, seed=3, ignore_eos=ignore_eos)
    free = undisturbed(PlanDriver(build_executor(spec)), plain)
    eos, stop = free[4], free[7]
    sampling = msgspec.structs.replace(plain, stop_token_ids=(stop,), min_tokens=20)

    def bounded() -> list[int]:
        return undisturbed(PlanDriver(build_executor(spec, eos_token_ids=(eos,))), sampling)

    answer = bounded()
    first_changed = 7 if ignore_eos else 4
    assert answer[:first_changed] == free[:first_changed]
    assert answer[first_changed] != free[first_changed]
    assert stop not in answer[:20]
    assert ignore_eos or eos not in answer[:20]
    assert answer == bounded()


def test_min_tokens_of_one_row_is_no_matter_of_another(spec: ModelSpec) -> None:
    free = undisturbed(PlanDriver(build_executor(spec)))
    driver = PlanDriver(build_executor(spec))
    bounded = SamplingParams(1000, temperature=0.0, stop_token_ids=(free[0],), min_tokens=9)
    changed = driver.admit(1, PROMPT, [11, 12, 13, 14, 15], sampling=bounded)
    driver.prefill(1)
    driven = driver.admit(0, PROMPT, BLOCKS)
    driver.prefill(0)
    driver.decode([1, 0], STEPS - 1)
    assert driven.answer == free
    assert changed.answer[0] != free[0]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StepPlan(1, rows=[0], starts=[42], counts=[1], samples=[True]), "does not know"),
        (StepPlan(1, new_blocks=[(0, [9, 10, 11, 12])]), "more blocks"),
        (StepPlan(1, rows=[3], starts=[0], counts=[1], samples=[True]), "does not know"),
    ],
)
def test_a_plan_that_contradicts_the_rows_is_refused(
    spec: ModelSpec, plan: StepPlan, message: str
) -> None:
    executor = build_executor(spec)
    driver = PlanDriver(executor)
    driver.admit(0, PROMPT, BLOCKS)
    driver.prefill(0)
    with pytest.raises(PlanError, match=message):
        executor.execute(plan)


def test_running_without_a_block_and_admitting_twice_are_refused(
    build: Callable[[], PlanDriver],
) -> None:
    driver = build()
    driver.admit(0, PROMPT, BLOCKS[:2])
    with pytest.raises(PlanError, match="no block"):
        driver.prefill(0)
    driver.admit(0, PROMPT, BLOCKS)
    with pytest.raises(PlanError, match="another sequence holds it"):
        driver.prefill(0)


def test_releasing_a_free_row_changes_nothing(build: Callable[[], PlanDriver]) -> None:
    driver = build()
    driver.executor.execute(StepPlan(0, released_rows=[0, 5, 0]))
    assert undisturbed(driver) == undisturbed(build())


def test_the_last_token_of_the_context_can_be_drawn(build: Callable[[], PlanDriver]) -> None:
    driver = build()
    driven = driver.admit(0, PROMPT, list(range(1, 9)))
    driver.prefill(0)
    driver.decode([0], 128 - len(PROMPT))
    assert len(driven.token_ids) == 129


def test_a_decode_is_bound_by_bandwidth_and_a_long_prefill_by_arithmetic(spec: ModelSpec) -> None:
    roofline = Roofline(spec, H200)
    weights = (spec.parameters - spec.embedding_parameters) * 2
    kv = spec.kv_bytes_per_token("bfloat16")
    decode = roofline.step_seconds(StepWork(1, 1, 100, 100))
    assert decode == pytest.approx(H200.launch_seconds + (weights + 101 * kv) / 4.8e12)
    tokens = 100_000
    work = StepWork(tokens, 0, tokens, 0)
    flops = 2 * tokens * (spec.parameters - 2 * spec.embedding_parameters)
    expected = max(flops / 989e12, (weights + 2 * tokens * kv) / 4.8e12)
    assert roofline.step_seconds(work) == pytest.approx(H200.launch_seconds + expected)


def test_a_step_takes_the_time_of_the_accelerator(spec: ModelSpec) -> None:
    slow = AcceleratorProfile("slow", 1e12, 1e12, launch_seconds=0.02, block_size=16)
    driver = PlanDriver(build_executor(spec, slow))
    driven = driver.admit(0, PROMPT, BLOCKS)
    result = driver.step({0: len(PROMPT)})
    assert result.seconds >= 0.02
    assert driven.answer == undisturbed(PlanDriver(build_executor(spec)))[:1]
