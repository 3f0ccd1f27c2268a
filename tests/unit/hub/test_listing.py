"""Which files of a repository a served model needs."""

from typing import Any

import pytest

from deepflow.core.repository import Repository, parse_repository
from deepflow.hub.errors import BadAnswer, HubError
from deepflow.hub.listing import HubFile, Listing, parse_listing, select

COMMIT = "a" * 40
REPOSITORY = Repository("acme", "tiny")


def selected(*paths: str) -> set[str]:
    files = tuple(HubFile(path, 1, git_sha1="x") for path in paths)
    return {file.path for file in select(Listing(COMMIT, files), REPOSITORY).files}


def test_configuration_tokenizers_templates_and_weights_are_needed() -> None:
    needed = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "modules.json",
        "1_Pooling/config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    others = {
        "README.md",
        ".gitattributes",
        "modeling_acme.py",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "original/params.json",
        "onnx/model.safetensors",
        "training_args.pt",
    }
    assert selected(*needed, *others) == needed


def test_weights_by_another_name_are_taken_where_no_usual_ones_are() -> None:
    assert "weights.safetensors" in selected("config.json", "weights.safetensors")


@pytest.mark.parametrize(
    "path",
    [
        "../evil.json",
        "/etc/evil.json",
        "a/../b.json",
        "./c.json",
        ".x.json",
        "a\\b.json",
        "e\n.json",
    ],
)
def test_a_path_that_leaves_its_folder_is_never_taken(path: str) -> None:
    assert path not in selected("config.json", "model.safetensors", path)


def test_a_repository_without_safetensors_says_what_it_has() -> None:
    with pytest.raises(HubError, match=r"no safetensors weights, and pytorch_model\.bin is never"):
        selected("config.json", "pytorch_model.bin")
    with pytest.raises(HubError, match=r"no config\.json"):
        selected("model.safetensors")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"sha": COMMIT},
        {"sha": "../x", "siblings": []},
        {"sha": COMMIT, "siblings": [{"rfilename": "a.json"}]},
        {"sha": COMMIT, "siblings": [{"rfilename": "a.json", "size": "1", "blobId": "x"}]},
    ],
)
def test_an_answer_of_no_hub_is_refused(answer: Any) -> None:
    with pytest.raises(BadAnswer):
        parse_listing(answer)


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("acme/tiny", Repository("acme", "tiny")),
        ("acme/Tiny-1.5B_x@v1.0", Repository("acme", "Tiny-1.5B_x", "v1.0")),
        ("acme/tiny@refs/pr/3", Repository("acme", "tiny", "refs/pr/3")),
        ("acme", None),
        ("/acme/tiny", None),
        ("acme/../tiny", None),
        ("acme/tiny/x", None),
        ("acme/tiny@", None),
        ("acme/tiny@../x", None),
        (".acme/tiny", None),
    ],
)
def test_what_a_hub_id_is(text: str, repository: Repository | None) -> None:
    assert parse_repository(text) == repository
