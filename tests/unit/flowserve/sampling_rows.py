"""Rows of a RowTable and random logits for them: what the sampler sees inside an executor."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.executor.matching import NoMatchers
from services.task_executor.flowserve.executor.row_table import RowTable, SampledRows
from services.task_executor.flowserve.executor.sampling_inputs import sampling_columns
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan
from services.task_executor.flowserve.sampling.adjustments import TokenMasks, adjust
from services.task_executor.flowserve.sampling.sampler import Sampled, sample, settle

EOS = 3


@dataclass
class Row:
    sampling: SamplingParams
    prompt: list[int]
    answer: list[int]


def sampling(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, **changes})


def random_logits(rows: int, vocabulary: int, seed: int, *, has_ties: bool = False) -> torch.Tensor:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.round() if has_ties else logits


def random_row(rng: random.Random, vocabulary: int) -> Row:
    """Every parameter is sometimes at work."""
    tokens = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 30))]
    cut = rng.randint(1, len(tokens))

    def sometimes(value: Any, usual: Any) -> Any:
        return value if rng.random() < 0.5 else usual

    params = sampling(
        temperature=sometimes(rng.uniform(0.1, 3), 0.0),
        top_k=sometimes(rng.randint(1, vocabulary), 0),
        top_p=sometimes(rng.uniform(0.05, 1), 1.0),
        min_p=sometimes(rng.uniform(0, 0.3), 0.0),
        repetition_penalty=sometimes(rng.uniform(0.5, 2), 1.0),
        presence_penalty=sometimes(rng.uniform(-2, 2), 0.0),
        frequency_penalty=sometimes(rng.uniform(-2, 2), 0.0),
        logit_bias=sometimes({t: rng.uniform(-9, 9) for t in rng.sample(range(vocabulary), 4)}, {}),
        stop_token_ids=sometimes((1, 2), ()),
        min_tokens=sometimes(40, 0),
        seed=rng.randrange(1 << 64),
        logprobs=rng.choice([None, 0, 1, 5, 20]),
    )
    return Row(params, tokens[:cut], tokens[cut:])


def tabled(rows: list[Row]) -> tuple[RowTable, SampledRows]:
    """All rows in one table, each about to draw the token after those it knows."""
    table = RowTable(len(rows), max_tokens=64, block_size=16, eos_token_ids=(EOS,))
    admitted = [
        AdmittedSequence(index, row.prompt + row.answer, len(row.prompt), index % 3, row.sampling)
        for index, row in enumerate(rows)
    ]
    table.update(StepPlan(1, admitted=admitted), NoMatchers())
    indexes = np.arange(len(rows), dtype=np.int64)
    return table, SampledRows(slice(None), indexes, table.lengths[indexes])


def adjusted(logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    table, sampled = tabled(rows)
    columns = sampling_columns(table, sampled, torch.from_numpy)
    return adjust(logits, columns.adjustments, None)


def draw_rows(
    logits: torch.Tensor,
    rows: list[Row],
    *,
    only: list[int] | None = None,
    masks: TokenMasks | None = None,
) -> Sampled:
    """`only` is the batch: these rows, in this order; the table holds all of them."""
    table, sampled = tabled(rows)
    if only is not None:
        batch = np.array(only, dtype=np.int64)
        sampled = SampledRows(batch, batch, table.lengths[batch])
        logits = logits[only]
    return settled(sample(logits, sampling_columns(table, sampled, torch.from_numpy), masks))


def settled(sampled: Sampled) -> Sampled:
    """Sure of every row."""
    rows = (~sampled.is_sure).nonzero().flatten()
    return settle(sampled, rows) if len(rows) else sampled


def pack(is_allowed: torch.Tensor) -> torch.Tensor:
    """bool [m, vocab] as the words of TokenMasks."""
    spare = -is_allowed.shape[-1] % 32
    padded = torch.nn.functional.pad(is_allowed, (0, spare)).numpy()
    packed = np.packbits(padded, axis=-1, bitorder="little").view(np.int32)
    return torch.from_numpy(packed)
