"""The soak's short form, and what its order of disturbances promises."""

import random
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.disturbances import SILENT, SUSPEND, VICTIMS, disturbances
from tests.chaos.soak import Plan, soak

SECONDS = 12.0
SEED = 1


@pytest.mark.timeout(900)
def test_a_mesh_under_streams_does_not_feel_its_control_plane_die(tmp_path: Path) -> None:
    """One order of them; others, and memory, are the long form's to judge."""
    plan = Plan(SECONDS, SEED, streams=16, silence_seconds=0, disturbances_min=2)
    report = soak(plan, tmp_path)
    assert report["passed"], report
    assert len(report["disturbances"]) >= 2 and report["answers"] >= 16, report


@given(st.integers(0, 1 << 32), st.floats(1, 60))
def test_a_round_disturbs_everybody_in_every_way_and_a_seed_repeats_it(
    seed: int, silence: float
) -> None:
    size = len(VICTIMS) * 3 + len(SILENT) * 2
    first = list(islice(disturbances(random.Random(seed), silence), size))
    assert first == list(islice(disturbances(random.Random(seed), silence), size))
    assert {(it.victim, it.how) for it in first} >= {(victim, SUSPEND) for victim in VICTIMS}
    assert sorted(it.victim for it in first if it.seconds == silence) == sorted(SILENT * 2)
    shorter = islice(disturbances(random.Random(seed), 0), size)
    assert all(it.seconds < 30 for it in shorter)
