import socket
from pathlib import Path

import pytest
from pydantic import Field

from deepflow.config import ConfigError, MeshServiceConfig, describe, load, unknown_variables


class KettleConfig(MeshServiceConfig):
    cups: int = Field(2, ge=1, le=8, description="How many cups to boil.")


def write(folder: Path, text: str) -> Path:
    path = folder / "deepflow.yaml"
    path.write_text(text)
    return path


def test_defaults_hold_where_nothing_is_set() -> None:
    assert load(KettleConfig, "kettle", environ={}).cups == 2


@pytest.mark.parametrize(
    ("environ", "text", "cups"),
    [
        ({"DEEPFLOW_KETTLE_CUPS": "3", "DEEPFLOW_CUPS": "4"}, "kettle: {cups: 5}\ncups: 6", 3),
        ({"DEEPFLOW_CUPS": "4"}, "kettle: {cups: 5}\ncups: 6", 4),
        ({}, "kettle: {cups: 5}\ncups: 6", 5),
        ({}, "cups: 6", 6),
    ],
)
def test_nearest_source_wins(tmp_path: Path, environ: dict[str, str], text: str, cups: int) -> None:
    config = load(KettleConfig, "kettle", environ=environ, path=write(tmp_path, text))
    assert config.cups == cups


def test_the_file_is_found_through_its_variable(tmp_path: Path) -> None:
    path = write(tmp_path, "kettle: {cups: 7}")
    assert load(KettleConfig, "kettle", environ={"DEEPFLOW_CONFIG": str(path)}).cups == 7


def test_a_bad_value_names_key_value_and_what_would_be_right() -> None:
    with pytest.raises(ConfigError) as caught:
        load(KettleConfig, "kettle", environ={"DEEPFLOW_KETTLE_CUPS": "ninety"})
    assert "DEEPFLOW_KETTLE_CUPS = 'ninety'" in str(caught.value)
    assert "integer" in str(caught.value)
    assert "How many cups" in str(caught.value)


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than or equal to 8"):
        load(KettleConfig, "kettle", environ={"DEEPFLOW_CUPS": "9"})


def test_a_bad_secret_is_not_printed(tmp_path: Path) -> None:
    path = write(tmp_path, "cluster_token: [hush]")
    with pytest.raises(ConfigError) as caught:
        load(KettleConfig, "kettle", environ={}, path=path)
    assert "hush" not in str(caught.value)
    assert "cluster_token = (hidden)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kettle: {cusp: 3}", "unknown setting kettle.cusp"),
        ("kettle: 3", "'kettle' must be a mapping"),
        ("[1, 2]", "must hold a mapping"),
        ("{", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(KettleConfig, "kettle", environ={}, path=write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(KettleConfig, "kettle", environ={}, path=tmp_path / "nowhere.yaml")


def test_mistyped_variables_are_noticed() -> None:
    environ = {"DEEPFLOW_KETTLE_CUSP": "3", "DEEPFLOW_KETTLE_CUPS": "3", "PATH": "/bin"}
    assert unknown_variables(KettleConfig, "kettle", environ) == ["DEEPFLOW_KETTLE_CUSP"]


def test_help_shows_every_setting_but_no_secret_default() -> None:
    text = describe(KettleConfig, "kettle")
    assert all(f"DEEPFLOW_KETTLE_{name.upper()}" in text for name in KettleConfig.model_fields)
    assert "DEEPFLOW_KETTLE_CUPS [2]" in text
    assert "DEEPFLOW_KETTLE_CLUSTER_TOKEN\n" in text


def test_an_id_may_name_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node1.example")
    environ = {"DEEPFLOW_KETTLE_ID": "te-{hostname}"}
    assert load(KettleConfig, "kettle", environ=environ).id == "te-node1-example"


@pytest.mark.parametrize("id", ["a.b", "te >", "*", "te-{host}"])
def test_an_id_that_would_break_a_subject_is_refused(id: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        load(KettleConfig, "kettle", environ={"DEEPFLOW_ID": id})


@pytest.mark.parametrize(
    ("environ", "advertised"),
    [
        ({"DEEPFLOW_HOST": "10.0.0.7"}, "10.0.0.7"),
        ({"DEEPFLOW_HOST": "0.0.0.0"}, "this-machine"),
        ({"DEEPFLOW_HOST": "0.0.0.0", "DEEPFLOW_ADVERTISE_HOST": "te.example"}, "te.example"),
    ],
)
def test_peers_are_told_a_host_that_they_can_reach(
    environ: dict[str, str], advertised: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "this-machine")
    assert load(KettleConfig, "kettle", environ=environ).advertised_host == advertised
