"""The logic of the smoke script on this CPU, without a card or its libraries."""

import json
import subprocess
import sys

import torch

from tools.device_checks.verdict import DIFFERS, FAILED, OK, compare, judge


def test_a_dry_run_passes_and_ends_in_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.npu_smoke", "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
    )
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert len(found["checks"]) == len(table) == 12
    assert {it["outcome"] for it in found["checks"]} == {OK}


def test_a_card_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.device_smoke", "--device", "npu"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("the device npu needs")


def test_one_bad_row_is_enough() -> None:
    wanted = torch.ones(4, 8)
    got = wanted.clone()
    assert compare(got, wanted, 0.01)[0] == OK
    got[2] *= 1.1
    assert compare(got, wanted, 0.01)[0] == DIFFERS
    got[2, 0] = torch.nan
    assert "1 of 32 values are not finite" in compare(got, wanted, 0.01)[1]
    assert compare(got[:2], wanted, 0.01)[0] == DIFFERS


def test_a_check_that_raises_is_a_verdict() -> None:
    def check() -> tuple[str, str]:
        raise RuntimeError("error 561002\nand much more")

    verdict = judge("attention", check)
    assert verdict.outcome == FAILED and verdict.is_bad
    assert verdict.detail == "RuntimeError: error 561002"
