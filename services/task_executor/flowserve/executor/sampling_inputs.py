"""From the columns of a RowTable to the tensors that the sampler works on."""

from collections.abc import Callable

import numpy as np
import torch

from deepflow.core.mixing import I64
from services.task_executor.flowserve.executor.row_table import RowTable, SampledRows
from services.task_executor.flowserve.executor.sampling_table import RowCells
from services.task_executor.flowserve.sampling.adjustments import Adjustments, Cells, Penalties
from services.task_executor.flowserve.sampling.drawing import Drawing, Limits
from services.task_executor.flowserve.sampling.ranking import Asked
from services.task_executor.flowserve.sampling.sampler import SamplingColumns

ToDevice = Callable[[np.ndarray], torch.Tensor]


def sampling_columns(table: RowTable, sampled: SampledRows, to_device: ToDevice) -> SamplingColumns:
    return SamplingColumns(
        drawing=_drawing(table, sampled, to_device),
        adjustments=_adjustments(table, sampled, to_device),
        asked=_asked(table.sampling.alternatives[sampled.rows], to_device),
    )


def _drawing(table: RowTable, sampled: SampledRows, to_device: ToDevice) -> Drawing | None:
    sampling, rows = table.sampling, sampled.rows
    temperatures = sampling.temperatures[rows]
    drawn = np.flatnonzero(temperatures > 0)
    if not len(drawn):
        return None
    return Drawing(
        to_device(drawn) if len(drawn) < len(rows) else None,
        to_device(temperatures),
        Limits(
            to_device(sampling.top_ks[rows]),
            to_device(sampling.top_ps[rows]),
            to_device(sampling.min_ps[rows]),
        ),
        to_device(sampling.draws(rows, sampled.ends)),
    )


def _asked(alternatives: I64, to_device: ToDevice) -> Asked | None:
    rows = np.flatnonzero(alternatives > 0)
    return Asked(to_device(rows), int(alternatives.max())) if len(rows) else None


def _adjustments(table: RowTable, sampled: SampledRows, to_device: ToDevice) -> Adjustments:
    sampling, rows = table.sampling, sampled.rows
    biased, forbidden = sampling.biases(rows), sampling.forbidden(rows, sampled.ends)
    penalised = sampling.penalised(rows)
    return Adjustments(
        biased=_to_cells(biased, to_device),
        forbidden=_to_cells(forbidden, to_device),
        penalties=_penalties(table, sampled, penalised, to_device) if len(penalised) else None,
    )


def _to_cells(cells: RowCells | None, to_device: ToDevice) -> Cells | None:
    if cells is None:
        return None
    values = cells.values.astype(np.float32)
    return Cells(to_device(cells.entries), to_device(cells.token_ids), to_device(values))


def _penalties(
    table: RowTable, sampled: SampledRows, entries: I64, to_device: ToDevice
) -> Penalties:
    rows, ends = sampled.rows[entries], sampled.ends[entries]
    firsts = table.sampling.prompt_lengths[rows]
    known, _ = _span(table, rows, np.zeros_like(ends), ends)
    answers, is_answer = _span(table, rows, firsts, ends)

    def column(values: np.ndarray) -> torch.Tensor:
        return to_device(values[rows].astype(np.float32))

    return Penalties(
        rows=to_device(entries),
        repetitions=column(table.sampling.repetitions),
        presences=column(table.sampling.presences),
        frequencies=column(table.sampling.frequencies),
        known=to_device(known),
        answers=to_device(answers),
        is_answer=to_device(is_answer),
    )


def _span(table: RowTable, rows: I64, firsts: I64, ends: I64) -> tuple[I64, np.ndarray]:
    """Tokens firsts .. ends - 1 of every row, padded with one of them, and where they are real."""
    width = int((ends - firsts).max())
    indexes = firsts[:, None] + np.arange(width)
    is_real = indexes < ends[:, None]
    padding = np.minimum(firsts, ends - 1)[:, None]
    tokens = table.token_ids[rows[:, None], np.where(is_real, indexes, padding)]
    return tokens.astype(np.int64), is_real
