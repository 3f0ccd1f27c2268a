import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from deepflow.core.devices import DEVICE_DTYPES
from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.registry import DEVICES
from services.task_executor.flowserve.executor.emulated_executor import EmulatedExecutor
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.messages import Load
from tests.unit.flowserve.model_specs import write_config
from tests.unit.flowserve.plan_driver import PlanDriver


class Steps:
    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield


def make_load(folder: Path, device: str = "emulated:zero", **settings: int) -> Load:
    return Load("small", str(folder), device, model_revision="r1", settings=settings)


def test_an_emulated_device_needs_only_a_config(tmp_path: Path) -> None:
    steps = Steps()
    config, executor, *_ = build_executor(make_load(write_config(tmp_path)), steps)
    assert steps.names == ["read_config", "allocate_kv", "warm_up"]
    assert isinstance(executor, EmulatedExecutor)
    assert (config.block_size, config.max_sequences, config.max_step_tokens) == (16, 256, 8192)
    assert (config.max_tokens, config.kv_blocks) == (512, 1 + 256 * 512 // 16)
    assert (config.vocab_size, config.eos_token_ids) == (1000, (2,))
    assert config.model_revision == "r1"
    assert (config.dtype, config.kv_dtype) == ("bfloat16", "bfloat16")
    executor.close()


def test_warm_up_leaves_every_row_free(tmp_path: Path) -> None:
    _, executor, *_ = build_executor(make_load(write_config(tmp_path)), Steps())
    driver = PlanDriver(executor)
    driven = driver.admit(0, [1, 2, 3], [1])
    driver.prefill(0)
    assert len(driven.answer) == 1


def test_an_npu_profile_brings_its_block_size(tmp_path: Path) -> None:
    load = make_load(write_config(tmp_path), "emulated:ascend-910b")
    assert build_executor(load, Steps())[0].block_size == 128


def test_settings_override_defaults(tmp_path: Path) -> None:
    load = make_load(
        write_config(tmp_path), block_size=4, kv_blocks=9, max_sequences=600, max_waiting=7
    )
    config, *_ = build_executor(load, Steps())
    assert (config.block_size, config.kv_blocks, config.max_waiting) == (4, 9, 7)
    assert config.max_tokens == 32  # all that eight blocks hold
    many = make_load(write_config(tmp_path), max_sequences=10_000)
    assert build_executor(many, Steps())[0].max_step_tokens == 10_000


def test_blocks_are_capped_where_the_context_is_long(tmp_path: Path) -> None:
    folder = write_config(tmp_path, max_position_embeddings=131_072)
    config, *_ = build_executor(make_load(folder), Steps())
    assert (config.kv_blocks, config.max_tokens) == (65_536, 131_072)


@pytest.mark.parametrize(
    ("device", "settings", "message"),
    [
        ("gpu", {}, "unknown device 'gpu'; known: cpu, npu, cuda, emulated:zero, emulated:asc"),
        ("emulated:zero", {"blocks": 3}, "unknown settings: blocks; known: block_size"),
        ("emulated:zero", {"max_sequences": 0}, "max_sequences must be positive, not 0"),
        ("emulated:zero", {"max_tokens": 513}, "max_tokens is 513, but .* holds 512"),
        ("emulated:zero", {"kv_blocks": 1}, "kv_blocks is 1, but must be 2 or more"),
        ("emulated:zero", {"max_step_tokens": 8}, "max_step_tokens is 8, but must be 256"),
        ("cpu", {}, "no safetensors file"),
        # Before any weight is looked for:
        ("cpu", {"kv_bytes": 1 << 50}, "it does not fit: .*1024 TiB KV cache"),
        ("cpu", {"kv_bytes": 1 << 14, "max_tokens": 512}, r"KV memory of 16.0 KiB holds 16 tok"),
        ("cpu", {"max_tokens": 1}, "max_tokens is 1, but must be 2 or more"),
        ("emulated:zero", {"kv_bytes": 1 << 50}, "an emulated device has at most"),
        ("emulated:zero", {"kv_blocks": 3, "max_tokens": 512}, "max_tokens is 512, but 3 KV"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    tmp_path: Path, device: str, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_executor(make_load(write_config(tmp_path), device, **settings), Steps())


def test_a_dtype_that_the_device_cannot_compute_is_refused_with_its_choices(
    tmp_path: Path,
) -> None:
    for device, dtype, choices in (
        ("cpu", "float16", "choices: float32, bfloat16"),
        ("emulated:zero", "int4", "choices: bfloat16, float16, float32"),
    ):
        load = replace(make_load(write_config(tmp_path), device), dtype=dtype)
        with pytest.raises(ValueError, match=f"{dtype}' cannot be computed on {device}; {choices}"):
            build_executor(load, Steps())


def test_memory_of_an_emulated_device_is_nominal(tmp_path: Path) -> None:
    load = make_load(write_config(tmp_path), kv_bytes=1 << 20)
    config, *_ = build_executor(replace(load, dtype="float32"), Steps())
    # K and V of 2 layers, 2 heads, 16 wide, 4 bytes, blocks of 16.
    assert (config.dtype, config.kv_blocks, config.kv_bytes) == ("float32", 128, 1 << 20)
    assert config.weight_bytes == ModelSpec.from_folder(load.source).weight_bytes("float32")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ValueError, match=r"only safetensors are loaded.*pytorch_model\.bin"):
        build_executor(make_load(folder, "cpu"), Steps())


def test_a_load_that_fails_leaves_neither_a_descriptor_nor_a_thread(tmp_path: Path) -> None:
    load = make_load(write_config(tmp_path), "cpu")

    class WarmUpFails(Steps):
        @contextmanager
        def __call__(self, name: str) -> Iterator[None]:
            if name == "warm_up":
                raise RuntimeError("the device is broken")
            yield

    with pytest.raises(ValueError, match="no safetensors file"):
        build_executor(load, Steps())  # whatever a first load leaves behind for good
    descriptors, threads = eventfds(), set(threading.enumerate())
    with pytest.raises(ValueError, match="no safetensors file"):
        build_executor(load, Steps())
    with pytest.raises(RuntimeError, match="the device is broken"):
        build_executor(replace(load, device="emulated:zero"), WarmUpFails())
    # What others left in this process may end at any time.
    assert eventfds() <= descriptors and set(threading.enumerate()) <= threads


def eventfds() -> set[str]:
    """By the number that the kernel gives each, and none twice."""
    lines = (line for file in Path("/proc/self/fdinfo").iterdir() for line in lines_of(file))
    return {line for line in lines if line.startswith("eventfd-id")}


def lines_of(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:  # closed meanwhile
        return []


def test_all_devices_have_their_names() -> None:
    emulated = ["emulated:zero", "emulated:ascend-910b", "emulated:h200"]
    assert DEVICES.names() == ["cpu", "npu", "cuda", *emulated]
    assert DEVICES.names() == list(DEVICE_DTYPES)


def test_the_emulated_path_never_imports_torch(tmp_path: Path) -> None:
    program = (
        "import contextlib, sys\n"
        "from services.task_executor.flowserve.executor.factory import build_executor\n"
        "from services.task_executor.flowserve.messages import Load\n"
        "load = Load('small', sys.argv[1], 'emulated:h200', model_revision='r')\n"
        "build_executor(load, lambda step: contextlib.nullcontext())\n"
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules\n"
    )
    folder = write_config(tmp_path)
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=60)
