"""A model whose steps take an emulated accelerator as long as a big model's: real streams' pace."""

import json
import shutil
from pathlib import Path

from deepflow.demo import MODEL_DIR

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
# 30 billion parameters: about 12 ms a step on an emulated H200, where weights are read once a step.
SIZES = {
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
DEVICE = "emulated:h200"
# Some 580 blocks of 16 tokens: enough for sixteen sequences, too few for every prompt's blocks.
KV_MEMORY = "2GiB"


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    config = json.loads((MODEL_DIR / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | SIZES))
    for name in TOKENIZER:
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder
