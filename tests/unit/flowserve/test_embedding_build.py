"""What keeps an encoder from being loaded, told before anything heavy is done."""

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.flowserve.embedding.build import build_embedding_master
from services.task_executor.flowserve.messages import Load
from tests.unit.common.encoder_folders import write_encoder


@pytest.mark.parametrize(
    ("load", "says"),
    [
        ({"device": "emulated:zero"}, "needs a real device"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' is not supported for embeddings"),
        ({"settings": {"max_tokens": 41}}, "context holds 40"),
        ({"settings": {"kv_bytes": 9}}, "unknown settings: kv_bytes"),
        ({}, "no safetensors file"),
    ],
)
def test_a_load_that_cannot_be_served_is_refused(
    tmp_path: Path, load: dict[str, Any], says: str
) -> None:
    usual = Load("m", str(write_encoder(tmp_path)), "cpu", "")
    asked = msgspec.structs.replace(usual, **load)
    with pytest.raises(ValueError, match=says):
        build_embedding_master(asked, lambda step: contextlib.nullcontext())


def test_weights_that_do_not_fit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (write_encoder(tmp_path) / "model.safetensors").write_bytes(_one_tensor(250_000))
    monkeypatch.setattr(CpuDevice, "memory_available", lambda self: 999_999)
    with pytest.raises(ValueError, match=r"the weights take .* are free"):
        build_embedding_master(
            Load("m", str(tmp_path), "cpu", ""), lambda step: contextlib.nullcontext()
        )


def _one_tensor(elements: int) -> bytes:
    header = b'{"t":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (elements, 4 * elements)
    return len(header).to_bytes(8, "little") + header + bytes(4 * elements)
