"""Which models the NPU's kernels run, and what a refusal says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.families.windows import LayerWindows
from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.npu.limits import check_cache, why_not
from tests.unit.flowserve.model_specs import write_config


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec.from_folder(write_config(tmp_path_factory.mktemp("model"), head_dim=128))


def test_a_usual_model_runs(spec: ModelSpec) -> None:
    assert why_not(spec) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_dim": 80}, "heads are 80 wide; the attention kernel takes 64, 128, 192"),
        ({"num_heads": 65, "num_kv_heads": 1}, "65 heads share 1 KV heads"),
        ({"num_heads": 512, "num_kv_heads": 512}, "the keys of a token are 65536 wide"),
        ({"num_heads": 990, "num_kv_heads": 33}, "1023 heads turn at once, of 999"),
    ],
)
def test_what_does_not_fit_is_named(spec: ModelSpec, changes: dict[str, int], reason: str) -> None:
    assert reason in (why_not(replace(spec, **changes)) or "")  # type: ignore[arg-type]


@given(st.data())
def test_windows_are_refused_exactly_where_they_cut_something_off(
    spec: ModelSpec, data: st.DataObject
) -> None:
    window = st.none() | st.integers(1, 2 * spec.context_length)
    windows = data.draw(st.lists(window, min_size=1, max_size=8))
    narrow = [it for it in windows if it is not None and it < spec.context_length]
    reason = why_not(replace(spec, layer_windows=_layers(windows)))
    assert (reason is not None) == bool(narrow)
    if reason is not None:
        assert f"{len(narrow)} of its layers see only the last {min(narrow)} of" in reason


def _layers(windows: list[int | None]) -> LayerWindows:
    return tuple(windows)


def test_a_cache_that_the_kernels_cannot_address_is_refused() -> None:
    check_cache((16_383, 128, 8, 128))
    with pytest.raises(ValueError, match="at most 16383"):
        check_cache((16_384, 128, 8, 128))
    with pytest.raises(ValueError, match="setting block_size is 64; the device npu takes 128"):
        check_cache((10, 64, 8, 128))
