"""What weights take in int8, held against the tensors themselves."""

from pathlib import Path

import pytest

from deepflow.core.model_spec import ModelSpec, count_parameters
from services.task_executor.flowserve.executor.capacity import (
    TORCH_DEFAULTS,
    Settings,
    footprint,
)
from services.task_executor.flowserve.executor.weight_size import OUTPUT_BYTES, weight_bytes
from tests.unit.flowserve.model_specs import write_config

HIDDEN, INNER, LAYERS, QUERIES, KEYS, VOCABULARY = 64, 128, 2, 64, 32, 1000


def spec(folder: Path, **changes: object) -> ModelSpec:
    return ModelSpec.from_folder(write_config(folder, **changes))


def linears(layers: int) -> list[tuple[int, int]]:
    """[out, in] of every linear layer, the head included."""
    layer = [
        (QUERIES + 2 * KEYS, HIDDEN),
        (HIDDEN, QUERIES),
        (2 * INNER, HIDDEN),
        (HIDDEN, INNER),
    ]
    return layers * layer + [(VOCABULARY, HIDDEN)]


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linears_take_a_byte_and_the_rest_stays_float(
    tmp_path: Path, is_tied: bool, has_bias: bool
) -> None:
    model = spec(tmp_path, tie_word_embeddings=is_tied, attention_bias=has_bias)
    biases = LAYERS * (QUERIES + 2 * KEYS + HIDDEN) if has_bias else 0
    norms = (2 * LAYERS + 1) * HIDDEN
    floats = VOCABULARY * HIDDEN + norms + biases
    quantized = sum(rows * columns + rows * OUTPUT_BYTES for rows, columns in linears(LAYERS))
    assert weight_bytes(model, "int8", "float32") == 4 * floats + quantized
    assert weight_bytes(model, "int8", "bfloat16") == 2 * floats + quantized


def test_other_dtypes_are_as_wide_as_they_are(tmp_path: Path) -> None:
    model = spec(tmp_path)
    assert weight_bytes(model, "float32", "float32") == 4 * count_parameters(model)
    assert weight_bytes(model, "bfloat16", "float32") == 2 * count_parameters(model)


def test_kv_and_activations_stay_float_around_int8(tmp_path: Path) -> None:
    model = spec(tmp_path)
    settings = Settings.read({}, model, TORCH_DEFAULTS, block_size=16)
    wide, narrow = (footprint(model, dtype, settings) for dtype in ("float32", "int8"))
    assert narrow.dtype == "int8"
    assert narrow.block_bytes == wide.block_bytes
    assert narrow.working_bytes == wide.working_bytes
    assert narrow.weight_bytes < wide.weight_bytes
    assert footprint(model, "int8", settings, "bfloat16").block_bytes == wide.block_bytes // 2
