"""What the benchmark of a step's overhead compares."""

from pathlib import Path

from deepflow.bench.engine import EngineOptions
from deepflow.bench.overhead import VOCABULARY, decode_step_median, fold, hollow
from deepflow.bench.random_model import SHAPES
from services.task_executor.flowserve.step_trace import StepSpan


def span(sequences: int, tokens: int, ran: tuple[float, float], *, is_last: bool) -> StepSpan:
    nothing = (0.0, 0.0)
    return StepSpan(1, sequences, tokens, nothing, ran, nothing, is_last)


def test_a_hollow_model_keeps_its_layers_and_its_kind() -> None:
    shape = SHAPES["qwen3-450m"]
    empty = hollow(shape)
    assert (empty.layers, empty.architecture) == (shape.layers, shape.architecture)
    assert empty.has_qk_norm and empty.hidden < 64


def test_prompts_keep_their_length_in_its_vocabulary() -> None:
    assert fold([[0, VOCABULARY + 3], [5]]) == [[0, 3], [5]]


def test_only_decodes_of_all_rows_count_with_what_is_between_them() -> None:
    spans = [
        span(2, 40, (0.0, 5.0), is_last=False),
        span(2, 2, (5.5, 6.0), is_last=False),  # 1 second after the one before
        span(1, 1, (6.0, 9.0), is_last=True),  # not all rows
        span(2, 2, (50.0, 51.0), is_last=False),  # after a rest
    ]
    assert decode_step_median(spans) == 1.0
    assert decode_step_median([]) == 0.0


def test_it_is_measured_only_where_a_hollow_model_can_be_made() -> None:
    assert EngineOptions().measures_overhead
    assert not EngineOptions(model=Path("model")).measures_overhead
    assert not EngineOptions(device="emulated:h200").measures_overhead
    assert not EngineOptions(tensor_parallel=2).measures_overhead
