from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepflow.bench import random_model
from deepflow.core.model_spec import ModelSpec

SHAPE = random_model.Shape("LlamaForCausalLM", "llama", 64, 96, 2, 4, 2, 16, 300)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stored", random_model.STORED)
def test_every_weight_is_kept_as_asked(tmp_path: Path, stored: str) -> None:
    random_model.write(SHAPE, tmp_path, stored)
    found = weights(tmp_path)
    assert {name: tuple(it.shape) for name, it in found.items()} == dict(SHAPE.tensors())
    assert {it.dtype for it in found.values()} == {getattr(torch, stored)}
    assert ModelSpec.from_folder(tmp_path).hidden_size == SHAPE.hidden


def test_both_are_the_same_model(tmp_path: Path) -> None:
    for stored in random_model.STORED:
        random_model.write(SHAPE, tmp_path / stored, stored)
    whole, short = (weights(tmp_path / stored) for stored in random_model.STORED)
    for name, weight in whole.items():
        assert torch.allclose(short[name].float(), weight, rtol=2**-7, atol=0), name
