"""Small random encoders, saved as sentence-transformers folders; transformers is the reference."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedModel

MODULE = "sentence_transformers.models."
WORDS = [f"w{i}" for i in range(90)]


def save_encoder(model: PreTrainedModel, folder: Path) -> Path:
    """The weights with noise in every vector of ones or zeros, so that each one matters."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def add_modules(
    folder: Path, pooling: dict[str, Any], kinds: tuple[str, ...] = ("Pooling", "Normalize")
) -> Path:
    """modules.json and what it names."""
    modules: list[dict[str, Any]] = [
        {"idx": 0, "name": "0", "path": "", "type": MODULE + "Transformer"}
    ]
    for number, kind in enumerate(kinds, 1):
        path = f"{number}_{kind}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": MODULE + kind})
        (folder / path).mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    if "Pooling" in kinds:
        (folder / f"{1 + kinds.index('Pooling')}_Pooling" / "config.json").write_text(
            json.dumps(pooling)
        )
    return folder


def add_tokenizer(folder: Path) -> Path:
    """One token a word: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then w0, w1, …"""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As many published folders have it; nobody here may be cut or padded by it.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def reference_states(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """[tokens, hidden] by transformers, the text alone."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        states: torch.Tensor = model(torch.tensor([token_ids])).last_hidden_state[0]
    return states
