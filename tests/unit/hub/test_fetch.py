"""Fetching over real HTTP: whole, interrupted, damaged, refused."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from deepflow.core.repository import Repository
from deepflow.hub.client import HubClient, HubSettings
from deepflow.hub.download import FileDownload
from deepflow.hub.errors import HubError, Offline
from deepflow.hub.fetch import FetchProgress, fetch_model
from deepflow.hub.listing import HubFile, parse_listing
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from tests.servers import free_port

WEIGHTS = os.urandom(3_000_000)
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "empty.txt": b"",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "model.safetensors": WEIGHTS,
    "README.md": b"# tiny",
    "pytorch_model.bin": b"never",
}
TINY = Repository("acme", "tiny")


class Watcher:
    def __init__(self) -> None:
        self.seen: list[FetchProgress] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, progress: FetchProgress) -> None:
        self.seen.append(progress)


class Here(NamedTuple):
    hub: FakeHub
    root: Path

    def fetch(
        self, repository: Repository = TINY, watcher: Watcher | None = None, token: str = ""
    ) -> Path:
        settings = HubSettings(self.hub.url, token)
        return fetch_model(repository, self.root, settings, watcher or Watcher())

    @property
    def part(self) -> Path:
        return self.root / "acme/tiny" / COMMIT / "model.safetensors.part"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with fake_hub(dict(FILES)) as hub:
        yield Here(hub, tmp_path / "models")


def test_only_what_serves_is_fetched_under_its_commit(here: Here) -> None:
    watcher = Watcher()
    folder = here.fetch(watcher=watcher)
    assert folder == here.root / "acme/tiny" / COMMIT
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    served = set(FILES) - {"README.md", "pytorch_model.bin"}
    assert found - {".fetched.json"} == served
    assert all((folder / path).read_bytes() == FILES[path] for path in served)
    total = sum(len(FILES[path]) for path in served)
    assert (watcher.seen[-1].done, watcher.seen[-1].total) == (total, total)
    assert [p.done for p in watcher.seen] == sorted(p.done for p in watcher.seen)


def test_what_is_complete_is_not_fetched_again(here: Here) -> None:
    here.fetch()
    here.hub.requests.clear()
    here.fetch()
    assert [path for path, _ in here.hub.requests] == ["/api/models/acme/tiny/revision/main"]
    here.hub.requests.clear()
    assert here.fetch(Repository("acme", "tiny", COMMIT)).name == COMMIT
    assert not here.hub.requests


def test_a_cut_connection_goes_on_where_it_was(here: Here) -> None:
    here.hub.cuts["model.safetensors"] = 1_700_000
    folder = here.fetch()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    first, second = here.hub.gets("model.safetensors")
    assert "range" not in first
    assert int(second["range"].removeprefix("bytes=").removesuffix("-")) > 0


def test_another_process_goes_on_where_one_was_killed(here: Here) -> None:
    here.part.parent.mkdir(parents=True)
    here.part.write_bytes(WEIGHTS[:1_000_000])
    watcher = Watcher()
    folder = here.fetch(watcher=watcher)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not here.part.exists()
    assert [h["range"] for h in here.hub.gets("model.safetensors")] == ["bytes=1000000-"]


def test_a_server_without_ranges_sends_it_all_again(here: Here) -> None:
    here.hub.ignores_ranges = True
    here.part.parent.mkdir(parents=True)
    here.part.write_bytes(b"x" * 1_000_000)
    assert (here.fetch() / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_removed_and_named(here: Here, path: str) -> None:
    here.hub.corrupt.add(path)
    with pytest.raises(HubError, match=rf"{path} of acme/tiny arrived damaged"):
        here.fetch()
    folder = here.root / "acme/tiny" / COMMIT
    assert not (folder / path).exists() and not (folder / f"{path}.part").exists()
    here.hub.corrupt.clear()
    assert ((here.fetch()) / path).read_bytes() == FILES[path]


def test_a_part_damaged_on_the_disk_never_becomes_the_model(here: Here) -> None:
    here.part.parent.mkdir(parents=True)
    here.part.write_bytes(b"x" * 1_000_000)
    with pytest.raises(HubError, match="arrived damaged"):
        here.fetch()
    assert (here.fetch() / "model.safetensors").read_bytes() == WEIGHTS


def test_the_token_goes_to_the_hub_and_nowhere_else(here: Here) -> None:
    with fake_hub(dict(FILES)) as elsewhere:
        here.hub.redirect_to = elsewhere.url
        here.fetch(token="secret")
        assert {h.get("authorization") for _, h in here.hub.requests} == {"Bearer secret"}
        assert elsewhere.gets("model.safetensors")
        assert not any("authorization" in h for _, h in elsewhere.requests)
    assert "secret" not in repr(HubSettings(token="secret"))


@pytest.mark.parametrize(
    ("refusal", "token", "words"),
    [
        ((404, "RepoNotFound"), "", "acme/tiny was not found at .*HF_TOKEN"),
        ((401, "RepoNotFound"), "", "acme/tiny was not found at .*HF_TOKEN"),
        ((401, ""), "wrong", "cannot be read with this HF_TOKEN"),
        ((401, "GatedRepo"), "", "is gated: accept its terms at .*/acme/tiny, then set HF_TOKEN"),
        ((403, "GatedRepo"), "mine", "is gated and not granted to this HF_TOKEN: ask at"),
        ((404, "RevisionNotFound"), "", "has no revision 'main'"),
        ((429, ""), "", "come back later"),
        ((500, ""), "", "answered with 500"),
    ],
)
def test_a_refusal_says_what_to_do(
    here: Here, refusal: tuple[int, str], token: str, words: str
) -> None:
    here.hub.refusal = refusal
    with pytest.raises(HubError, match=words):
        here.fetch(token=token)


def test_without_a_network_the_last_answer_counts(here: Here) -> None:
    folder = here.fetch()
    nobody = HubSettings(f"http://127.0.0.1:{free_port()}")
    watcher = Watcher()
    assert fetch_model(TINY, here.root, nobody, watcher) == folder
    assert "cannot be reached" in watcher.notes[0]
    with pytest.raises(Offline, match="check the network"):
        fetch_model(Repository("acme", "other"), here.root, nobody, watcher)


def test_offline_by_choice_asks_nobody(here: Here) -> None:
    offline = HubSettings(here.hub.url, is_offline=True)
    with pytest.raises(Offline, match="HF_HUB_OFFLINE is set, and acme/tiny is not in"):
        fetch_model(TINY, here.root, offline, Watcher())
    assert not here.hub.requests
    folder = here.fetch()
    here.hub.requests.clear()
    assert fetch_model(TINY, here.root, offline, Watcher()) == folder
    assert not here.hub.requests


def test_a_full_disk_is_seen_before_anything_is_fetched(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(here.root.parent)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(HubError, match=r"needs 2\.86 MiB more .* has 977 KiB left"):
        here.fetch()
    assert not here.hub.gets("model.safetensors")


def test_a_folder_that_cannot_be_used_is_named(here: Here, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(HubError, match="choose another folder for models with DEEPFLOW_MODELS_DIR"):
        here.fetch()


def test_what_is_no_hub_is_no_model(here: Here) -> None:
    with pytest.raises(HubError, match="not found"):
        here.fetch(Repository("acme", "other"))
    nonsense = HubSettings("not an address")
    with pytest.raises(HubError):
        fetch_model(TINY, here.root, nonsense, Watcher())


def test_settings_come_from_the_usual_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_TOKEN", " t \n")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = HubSettings("https://mirror.example", "t", is_offline=True)
    assert HubSettings.from_environment() == expected


def test_redirects_without_end_are_a_bad_hub(here: Here) -> None:
    here.hub.redirect_to = here.hub.url
    with pytest.raises(HubError, match="redirects"):
        here.fetch()


def test_a_hub_that_only_ever_cuts_is_given_up(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.hub, "cuts", AlwaysZero())
    settings = HubSettings(here.hub.url)
    (here.root / "acme/tiny" / COMMIT).mkdir(parents=True)
    weights = next(f for f in _listed(here.hub) if f.path == "model.safetensors")
    pauses: list[float] = []
    with HubClient(settings) as client, pytest.raises(Offline, match="cannot be reached"):
        target = here.part.with_name("model.safetensors")
        FileDownload(client, TINY, COMMIT, weights, target, pause=pauses.append).run(lambda _: None)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_a_hub_that_begins_anew_and_cuts_here_and_there_is_given_up(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.hub.ignores_ranges = True
    monkeypatch.setattr(here.hub, "cuts", HereAndThere())
    (here.root / "acme/tiny" / COMMIT).mkdir(parents=True)
    weights = next(f for f in _listed(here.hub) if f.path == "model.safetensors")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert len(pauses) < 10, "it never ends"

    with HubClient(HubSettings(here.hub.url)) as client, pytest.raises(Offline):
        target = here.part.with_name("model.safetensors")
        FileDownload(client, TINY, COMMIT, weights, target, pause=pause).run(lambda _: None)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


class HereAndThere(dict[str, int]):
    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def pop(self, *_: object) -> int:
        self._count += 1
        return 2_500_000 if self._count % 2 else 1_500_000


class AlwaysZero(dict[str, int]):
    def pop(self, *_: object) -> int:
        return 0


def _listed(hub: FakeHub) -> tuple[HubFile, ...]:
    return parse_listing(hub.listing()).files
