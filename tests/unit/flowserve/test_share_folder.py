"""What each rank reads of a folder: its slices, and together all there is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepflow.core.model_folder import ModelFolderError
from deepflow.core.model_spec import ModelSpec
from deepflow.core.parallel import Layout, Share
from services.task_executor.weights.share_folder import ShareFolder
from tests.unit.flowserve.model_specs import write_config

CPU = torch.device("cpu")
HIDDEN, INNER, WORDS = 8, 7, 11
LAYER = "model.layers.0."
TENSORS = {
    "model.embed_tokens.weight": (WORDS, HIDDEN),
    "lm_head.weight": (WORDS, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    LAYER + "self_attn.q_proj.weight": (16, HIDDEN),
    LAYER + "self_attn.k_proj.weight": (8, HIDDEN),
    LAYER + "self_attn.o_proj.weight": (HIDDEN, 16),
    LAYER + "self_attn.o_proj.bias": (HIDDEN,),
    LAYER + "mlp.up_proj.weight": (INNER, HIDDEN),
    LAYER + "mlp.down_proj.weight": (HIDDEN, INNER),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(
        tmp_path,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        vocab_size=WORDS,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        attention_bias=True,
    )
    tensors = {name: torch.rand(shape) for name, shape in TENSORS.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def folders(folder: Path, layout: Layout) -> list[tuple[Share, ShareFolder]]:
    spec = ModelSpec.from_folder(folder)
    shares = [Share(spec, place) for place in layout.places]
    return [(it, ShareFolder(folder, CPU, torch.float32, it)) for it in shares]


def test_slices_together_are_the_tensor(folder: Path) -> None:
    [(_, alone)] = folders(folder, Layout(1, 1))
    whole = {name: alone.take(name, shape) for name, shape in TENSORS.items()}
    pairs = folders(folder, Layout(2, 1))
    for name, axis, shapes in (
        ("lm_head.weight", 0, [(6, 8), (5, 8)]),
        ("model.embed_tokens.weight", 0, [(6, 8), (5, 8)]),
        (LAYER + "self_attn.q_proj.weight", 0, [(8, 8), (8, 8)]),
        (LAYER + "self_attn.k_proj.weight", 0, [(4, 8), (4, 8)]),
        (LAYER + "self_attn.o_proj.weight", 1, [(8, 8), (8, 8)]),
        (LAYER + "mlp.up_proj.weight", 0, [(4, 8), (3, 8)]),
        (LAYER + "mlp.down_proj.weight", 1, [(8, 4), (8, 3)]),
    ):
        parts = [it.take(name, shape) for (_, it), shape in zip(pairs, shapes, strict=True)]
        assert all(part.is_contiguous() for part in parts)
        assert torch.equal(torch.cat(parts, dim=axis), whole[name])


def test_ranks_without_a_kv_head_of_their_own_share_one(folder: Path) -> None:
    name = LAYER + "self_attn.k_proj.weight"
    parts = [it.take(name, (4, 8)) for _, it in folders(folder, Layout(4, 1))]
    assert torch.equal(parts[0], parts[1]) and torch.equal(parts[2], parts[3])
    assert not torch.equal(parts[0], parts[2])


def test_a_tensor_of_another_size_is_told_as_it_is_stored(folder: Path) -> None:
    _, second = folders(folder, Layout(2, 1))[1]
    with pytest.raises(ModelFolderError, match=r"shape \(11, 8\), not \(11, 9\)"):
        second.take("lm_head.weight", (5, 9))


def test_a_tensor_that_no_rank_has_a_place_for_is_told(folder: Path) -> None:
    _, weights = folders(folder, Layout(2, 1))[1]
    for name, shape in (
        ("lm_head.weight", (5, 8)),
        ("model.embed_tokens.weight", (5, 8)),
        ("model.norm.weight", (8,)),
        (LAYER + "self_attn.q_proj.weight", (8, 8)),
        (LAYER + "self_attn.k_proj.weight", (4, 8)),
        (LAYER + "self_attn.o_proj.weight", (8, 8)),
        (LAYER + "mlp.up_proj.weight", (3, 8)),
    ):
        weights.take(name, shape)
    # The summed bias is the first rank's; the last tensor is missing from what was taken.
    with pytest.raises(ModelFolderError, match=r"1 tensors have no place .*mlp.down_proj.weight"):
        weights.check_all_taken()
    weights.take(LAYER + "mlp.down_proj.weight", (8, 3))
    weights.check_all_taken()
