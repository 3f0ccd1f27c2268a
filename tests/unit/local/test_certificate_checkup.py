"""What `doctor` says of certificates."""

import datetime
from pathlib import Path

import pytest

from deepflow.local.checkup.certificates import (
    DAYS_MIN,
    ends_of,
    examine_certificates,
    judge_certificate,
)
from deepflow.local.checkup.finding import Level
from deepflow.local.data_dir import DataDir
from tests.certificates import DAYS, make_folder

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("days", "level"),
    [(DAYS_MIN + 1, Level.OK), (DAYS_MIN - 1, Level.WARN), (0, Level.FAIL), (-3, Level.FAIL)],
)
def test_the_nearer_the_end_the_louder(days: int, level: Level) -> None:
    ends = NOW + datetime.timedelta(days=days)
    finding = judge_certificate(Path("a.pem"), ends, "", NOW)
    assert finding.level is level
    assert f"{ends:%Y-%m-%d}" in finding.says
    assert bool(finding.do) == (level is not Level.OK)


def test_the_end_is_read_from_the_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tls")
    ends, fault = ends_of(folder.public.certificate)
    assert ends is not None and fault == ""
    left = ends - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=DAYS - 1) < left <= datetime.timedelta(days=DAYS)
    for bad in (folder.public.key, tmp_path / "missing.pem"):
        ends, fault = ends_of(bad)
        assert ends is None
        finding = judge_certificate(bad, ends, fault, NOW)
        assert finding.level is Level.FAIL and str(bad) in finding.says


def test_where_nothing_runs_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert examine_certificates(DataDir(tmp_path)) == []
