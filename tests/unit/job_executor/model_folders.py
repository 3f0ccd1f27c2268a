"""Small model folders: a byte-level tokenizer (as GPT-2's) and a Metaspace one (as Llama 2's)."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "What is a task executor? It holds a model and turns tasks into tokens.",
    "Ein Übermaß an Grüßen. Größe, Füße, naïve café.",
    "日本語のテキスト。こんにちは世界",
    "emoji 😀 😎 👩‍👩‍👧‍👦 🇩🇪 and more 🎉🎉",
    "numbers 1 2 3 45 678 and = signs + - * /",
]
SPECIAL = ["<bos>", "<eos>", "<turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'bad' %}{{ raise_exception('no such role: bad') }}{% endif %}"
    "{{ '<turn>' + message.role + '\n' + message.content + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<plain added>", "日本"])
    _add_bos(tokenizer)
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*SPECIAL, "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add_bos(tokenizer)
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, **tokenizer_config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, **tokenizer_config}))
    return folder


def _add_bos(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 0)]
    )
