"""The compiled decode attention: shapes of real models, rows that know nothing of each other."""

import math
import os
from pathlib import Path

import pytest
import torch

from services.task_executor.devices.base import LayerKv
from services.task_executor.devices.cpu.native import build as native
from services.task_executor.devices.cpu.native.build import NoLibrary, build
from services.task_executor.devices.cpu.native.decode_attention import (
    SOURCE,
    DecodeAttention,
    DecodeRows,
    begin_build,
)

SIZE = 16
LENGTHS = [1, 15, 16, 17, 300, 64, 33, 2]


@pytest.fixture(scope="module")
def kernel() -> DecodeAttention:
    built = begin_build().wait()
    if built is None:
        pytest.skip("no C compiler here")
    return built


class Case:
    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        draw = torch.Generator().manual_seed(heads * head_dim)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw)

        width = -(-max(LENGTHS) // SIZE)
        blocks = torch.randperm(len(LENGTHS) * width, generator=draw) + 1
        self.tables = blocks.view(len(LENGTHS), width).int()
        cache = (1 + len(blocks), SIZE, kv_heads, head_dim)
        self.kv = LayerKv(random(*cache), random(*cache))
        # As the model passes them: a slice of what one linear layer gives.
        self.queries = random(len(LENGTHS), heads + 2 * kv_heads, head_dim)[:, :heads]
        self.group = heads // kv_heads

    def attend(self, kernel: DecodeAttention, chosen: list[int]) -> torch.Tensor:
        lengths = [LENGTHS[it] for it in chosen]
        tokens = list(range(len(chosen)))
        rows = DecodeRows(self.tables[chosen], tokens, [0] * len(chosen), lengths)
        queries = self.queries[chosen]
        output = torch.full(queries.shape, math.nan)
        kernel.attend(rows, queries, self.kv, output)
        return output

    def expected(self, row: int) -> torch.Tensor:
        slots = torch.arange(LENGTHS[row])
        at = self.tables[row].long()[slots // SIZE], slots % SIZE
        keys, values = (it[at].double() for it in (self.kv.keys, self.kv.values))
        keys, values = (it.repeat_interleave(self.group, dim=1) for it in (keys, values))
        query = self.queries[row].double()
        scores = torch.einsum("hd,shd->hs", query, keys) / math.sqrt(query.shape[-1])
        return torch.einsum("hs,shd->hd", scores.softmax(-1), values).float()


SHAPES = [(12, 4, 64), (16, 8, 128), (8, 1, 96), (3, 3, 20), (32, 2, 80), (1, 1, 2)]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_it_is_softmax_attention(
    kernel: DecodeAttention, heads: int, kv_heads: int, head_dim: int
) -> None:
    case = Case(heads, kv_heads, head_dim)
    attended = case.attend(kernel, list(range(len(LENGTHS))))
    for row in range(len(LENGTHS)):
        assert torch.allclose(attended[row], case.expected(row), atol=1e-5)


def test_a_row_gives_the_same_bits_in_every_batch(kernel: DecodeAttention) -> None:
    case = Case(12, 4, 64)
    whole = case.attend(kernel, list(range(len(LENGTHS))))
    for chosen in ([0], [4], [4, 0], [7, 6, 5, 4, 3]):
        assert torch.equal(case.attend(kernel, chosen), whole[chosen])


def test_large_scores_do_not_overflow(kernel: DecodeAttention) -> None:
    case = Case(12, 4, 64)
    case.queries *= 200
    attended = case.attend(kernel, [4])
    assert torch.allclose(attended[0], case.expected(4), atol=1e-3)


def test_a_nan_stays_in_its_row(kernel: DecodeAttention) -> None:
    case = Case(12, 4, 64)
    whole = case.attend(kernel, list(range(len(LENGTHS))))
    case.kv.keys[case.tables[4, 3], 5] = math.nan
    attended = case.attend(kernel, list(range(len(LENGTHS))))
    assert attended[4].isnan().all()
    kept = torch.arange(len(LENGTHS)) != 4
    assert torch.equal(attended[kept], whole[kept])


def test_what_it_cannot_read_is_left_to_torch(kernel: DecodeAttention) -> None:
    case = Case(12, 4, 64)
    assert kernel.fits(case.queries, case.kv)
    assert not kernel.fits(case.queries.bfloat16(), case.kv)
    halves = LayerKv(case.kv.keys.bfloat16(), case.kv.values.bfloat16())
    assert not kernel.fits(case.queries, halves)
    assert not kernel.fits(torch.zeros(1, 1024, 4), case.kv)


def test_a_library_is_built_once(kernel: DecodeAttention, tmp_path: Path) -> None:
    folder = tmp_path / "native"
    library = build(SOURCE, folder)
    before = library.stat()
    assert build(SOURCE, folder) == library
    assert library.stat().st_mtime_ns == before.st_mtime_ns
    assert [it.name for it in folder.iterdir()] == [library.name]


def test_no_compiler_is_no_library(
    kernel: DecodeAttention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(NoLibrary, match="no C compiler"):
        build(SOURCE, tmp_path / "native")


def test_what_does_not_compile_is_no_library(kernel: DecodeAttention, tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("this is no C")
    with pytest.raises(NoLibrary, match="does not compile"):
        build(source, tmp_path / "native")
    assert list((tmp_path / "native").iterdir()) == []


def test_a_folder_that_others_write_is_not_trusted(kernel: DecodeAttention, tmp_path: Path) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(NoLibrary, match="can be written by others"):
        build(SOURCE, folder)


def test_a_folder_that_cannot_be_made_is_no_library(
    kernel: DecodeAttention, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoLibrary, match=os.strerror(20)):
        build(SOURCE, tmp_path / "file" / "native")
