"""Train the demo model and write its folder, then print how much of the held-out set it knows.

Everything is made from the sentences in this folder: the tokenizer, the training chats and the
held-out questions. The same seed, steps and number of threads give the same model on the same
machine. The default run takes about twelve minutes on two idle cores.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deepflow.demo import MODEL_DIR
from tools.demo_model.batches import UNLABELLED, Batch, ChatCoder, batches
from tools.demo_model.corpus import Corpus, held_out, write_held_out
from tools.demo_model.evaluate import report, score_by_kind
from tools.demo_model.optimizer import Optimizer
from tools.demo_model.tokens import train_tokenizer

CONTEXT = 1024
ANSWER_TOKENS_MAX = 256
log = logging.getLogger("demo_model")


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    corpus = Corpus()
    model, tokenizer = _begin(corpus, arguments.start)
    train(model, corpus, tokenizer, arguments)
    save(model, tokenizer, arguments.out)
    write_held_out(held_out())
    log.info(report(score_by_kind(arguments.out, held_out())))


def train(
    model: LlamaForCausalLM,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    arguments: argparse.Namespace,
) -> None:
    optimizer = Optimizer(model, arguments.steps, arguments.rate)
    source = batches(corpus, ChatCoder(tokenizer), arguments.tokens, arguments.seed)
    started = time.monotonic()
    for step in range(arguments.steps):
        loss = answer_loss(model, next(source))
        torch.autograd.backward(loss)
        optimizer.step(step)
        if step % 20 == 0:
            log.info("step %d  loss %.4f  %.0f s", step, loss.item(), time.monotonic() - started)


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean loss per answer; positions outside of answers never reach the output layer."""
    hidden = model.model(input_ids=batch.ids).last_hidden_state[:, :-1]
    targets = batch.labels[:, 1:]
    wanted = targets != UNLABELLED
    losses = cross_entropy(model.lm_head(hidden[wanted]), targets[wanted], reduction="none")
    weights = batch.weights[:, 1:][wanted]
    return (losses * weights).sum() / weights.sum()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The folder in plain Hugging Face form, weights in bf16, the template inside
    tokenizer_config.json."""
    out.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    generation = ids | {"do_sample": False, "max_new_tokens": ANSWER_TOKENS_MAX}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (out / "model.safetensors").chmod(0o644)
    settings = out / "tokenizer_config.json"  # older transformers know only the older class name
    named = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for where_it_was_made in ("is_local", "local_files_only"):
        named.pop(where_it_was_made, None)
    settings.write_text(json.dumps(named, indent=2) + "\n")


def _begin(corpus: Corpus, start: Path | None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    if start is None:
        tokenizer = train_tokenizer(_texts(corpus), CONTEXT)
        return LlamaForCausalLM(_config(tokenizer)), tokenizer
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    return model.train(), PreTrainedTokenizerFast.from_pretrained(start)


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def _texts(corpus: Corpus) -> list[str]:
    """What the tokenizer learns from: answers often, questions once."""
    answers = [topic.answer for topic in corpus.topics] * 40
    return answers + [pair.question for pair in corpus.plain()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_model.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write (%(default)s)")
    parser.add_argument("--start", type=Path, help="go on from this model folder, not from nothing")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak rate (%(default)s)")
    parser.add_argument("--steps", type=int, default=1600, help="optimizer steps (%(default)s)")
    parser.add_argument("--tokens", type=int, default=3072, help="tokens per step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for torch (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
