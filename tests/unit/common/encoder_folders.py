"""Encoder folders without weights: all that reading their shape needs."""

import json
from pathlib import Path
from typing import Any

from deepflow.core.encoder_spec import EncoderSpec
from deepflow.core.pooling_spec import PoolingSpec

CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": 97,
    "max_position_embeddings": 40,
}


def write_encoder(folder: Path, modules: list[str] | None = None, **config: Any) -> Path:
    """`modules`: kinds for modules.json, each with a folder of its own behind the first."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if modules is not None:
        entries = [
            {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}" if i else ""}
            for i, kind in enumerate(modules)
        ]
        write_json(folder / "modules.json", entries)
        for entry in entries:
            (folder / entry["path"]).mkdir(exist_ok=True)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def encoder_spec(**fields: Any) -> EncoderSpec:
    usual: dict[str, Any] = {
        "architecture": "BertModel",
        "hidden_size": 24,
        "intermediate_size": 56,
        "num_layers": 2,
        "num_heads": 3,
        "vocab_size": 97,
        "type_vocab_size": 2,
        "max_positions": 40,
        "first_position": 0,
        "context_length": 40,
        "layer_norm_eps": 1e-12,
        "activation": "gelu",
        "pooling": PoolingSpec(),
        "parameters": 0,
    }
    return EncoderSpec(**(usual | fields))
