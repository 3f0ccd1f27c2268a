"""Side by side or one by one: the masks are the same, and who is slow is found."""

import numpy as np
import pytest

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.mask_filler import ROWS_FOR_THREADS, MaskFiller
from tests.unit.flowserve.grammar import rig

ROWS = 2 * ROWS_FOR_THREADS


def test_side_by_side_as_one_by_one() -> None:
    language = rig.demo()
    grammars = language.grammars
    matchers = [grammars.matcher(Grammar("regex", f"[a-z]{{{i}}}\\d*")) for i in range(ROWS)]
    matchers[3].consume_tokens(language.encode("?"))  # has an error from now on
    together, alone = MaskFiller(grammars.mask_words, cpus=4), MaskFiller(grammars.mask_words, 1)
    for count in (ROWS, ROWS_FOR_THREADS, 2):
        masks, slow = together.fill(matchers[:count])
        assert masks.shape == (count, grammars.mask_words) and slow == []
        expected, _ = alone.fill(matchers[:count])
        assert np.array_equal(masks, expected)
    assert matchers[3].is_error()


def test_who_is_slow_is_found_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = rig.demo().grammars
    matchers = [grammars.matcher(Grammar("regex", "[a-z]*")) for _ in range(ROWS)]
    filler = MaskFiller(grammars.mask_words, cpus=4)
    monkeypatch.setattr(limits, "SLOW_MASK_SECONDS", 0.0)
    assert filler.fill(matchers)[1] == []  # somebody was
    assert filler.fill(matchers)[1] == list(range(ROWS))
    monkeypatch.setattr(limits, "SLOW_MASK_SECONDS", 1e9)
    assert filler.fill(matchers)[1] == []
