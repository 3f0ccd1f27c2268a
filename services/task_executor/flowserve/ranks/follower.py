"""Runs plans on a rank that draws nothing: its share of the layers, and of the head.

What it keeps in further tiers is copied by threads, beside its steps.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from deepflow.core.parallel import Place
from services.task_executor.devices.base import Device, LayerKv
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.prompt_scores import follow_scores
from services.task_executor.flowserve.executor.row_table import SampledRows, StepBatch
from services.task_executor.flowserve.executor.torch_executor import TorchExecutor
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.plan import StepPlan
from services.task_executor.flowserve.ranks.collectives import Collectives
from services.task_executor.flowserve.ranks.messages import Drawn
from services.task_executor.flowserve.ranks.row_owners import RowOwners
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone
from services.task_executor.flowserve.runner.threaded import SWITCH_SECONDS
from services.task_executor.flowserve.tiers.build import open_stores
from services.task_executor.flowserve.tiers.copy_threads import CopyThreads
from services.task_executor.flowserve.tiers.pinned_blocks import blocks_of


class Follower(TorchExecutor):
    def __init__(
        self,
        model: Model,
        device: Device,
        kv: list[LayerKv],
        config: EngineConfig,
        place: Place,
        collectives: Collectives,
    ) -> None:
        super().__init__(model, device, kv, config)
        self._config = config
        self._place = place
        self._collectives = collectives
        self._owners = RowOwners(config.max_sequences)
        self._tiers: CopyThreads | None = None

    @property
    def device_type(self) -> str:
        return self._device.torch_device.type

    def keep(self, folder: Path, tell: Callable[[list[CopyDone]], None]) -> None:
        """Open its tiers; threads of theirs `tell` what was copied. Raises ValueError."""
        blocks = blocks_of(self._device, self._kv)
        stores = open_stores(self._config, blocks.block_bytes, folder, self._place)
        self._tiers = CopyThreads(blocks, *stores, tell)
        sys.setswitchinterval(SWITCH_SECONDS)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Begin to; the steps go on."""
        assert self._tiers is not None, "a rank is to copy between tiers that it was not given"
        self._tiers.submit(copies)

    def close(self) -> None:
        if self._tiers is not None:
            self._tiers.close()
        super().close()

    def begin(self, plan: StepPlan) -> None:
        self._rows.update(plan, self._matchers)
        self._owners.update(plan)

    def knows_tokens(self, plan: StepPlan) -> bool:
        """Whether every token is here that the plan runs: rank 0 may still be drawing some."""
        ends = np.array(plan.starts, dtype=np.int64) + np.array(plan.counts, dtype=np.int64)
        return bool((ends <= self._rows.lengths[plan.rows]).all())

    def take(self, drawn: Drawn) -> None:
        rows = np.array(drawn.rows, dtype=np.int64)
        ends = np.array(drawn.ends, dtype=np.int64)
        token_ids = np.array(drawn.token_ids, dtype=np.int64)
        own = self._owners.still_own(rows, drawn.step)
        self._rows.append(SampledRows(own, rows[own], ends[own]), token_ids[own])

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> None:
        if not plan.rows:
            return
        batch = self._rows.lay_out(plan)
        hidden = self._forward(batch)
        if not self._place.is_last_stage:
            self._collectives.send(hidden)
        else:
            self._follow_logits(plan, batch, hidden)

    def _follow_logits(self, plan: StepPlan, batch: StepBatch, hidden: torch.Tensor) -> None:
        follow_scores(self._rows, batch, hidden, self._model.logits)
        entries = np.flatnonzero(plan.samples)
        if len(entries):
            last_tokens = self._to_device(batch.counts.cumsum()[entries] - 1)
            self._model.logits(hidden[last_tokens])
