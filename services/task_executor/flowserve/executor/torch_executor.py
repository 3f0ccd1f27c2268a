"""Runs plans on a device that torch drives: prefill chunks and decodes in one flat forward."""

import time

import numpy as np
import torch

from deepflow.core.sampling import uniform
from services.task_executor.devices.base import AttentionInputs, Device, LayerKv
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.row_table import RowTable, SampledRows, StepBatch
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.sampling.sampler import Sampled, SamplingColumns, sample

NOT_FINITE = "the model gave logits that are not finite"


class TorchExecutor:
    def __init__(
        self, model: Model, device: Device, kv: list[LayerKv], config: EngineConfig
    ) -> None:
        self._model = model
        self._device = device
        self._kv = kv
        self._rows = RowTable(config.max_sequences, config.max_tokens, config.block_size)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        began = time.perf_counter()
        self._rows.update(plan)
        result = StepResult(plan.step, [], [], [])
        if plan.rows:
            batch = self._rows.lay_out(plan)
            sampled = self._rows.sampled(plan, batch)
            logits = self._forward(batch, sampled)
            if len(sampled.rows):
                self._sample(logits, sampled, result)
        result.seconds = time.perf_counter() - began
        return result

    def close(self) -> None:
        self._kv = []

    def _forward(self, batch: StepBatch, sampled: SampledRows) -> torch.Tensor:
        last_tokens = batch.counts.cumsum()[sampled.entries] - 1
        attention = self._device.begin_attention(self._attention_inputs(batch))
        return self._model.forward(
            self._to_device(batch.token_ids.astype(np.int64)),
            self._to_device(batch.positions),
            attention,
            self._kv,
            self._to_device(last_tokens),
        )

    def _attention_inputs(self, batch: StepBatch) -> AttentionInputs:
        size = self._rows.block_size
        width = -(-int(batch.ends.max()) // size)
        return AttentionInputs(
            block_size=size,
            counts=batch.counts.tolist(),
            lengths=batch.ends.tolist(),
            block_tables=torch.from_numpy(self._rows.block_tables[batch.rows, :width]),
            slots=torch.from_numpy(batch.slots),
        )

    def _sample(self, logits: torch.Tensor, sampled: SampledRows, result: StepResult) -> None:
        drawn = sample(logits, self._sampling_columns(sampled))
        # A failed row goes on with token 0: a plan made before anyone knew must still run.
        self._rows.append(sampled, drawn.token_ids.cpu().numpy())
        _report(drawn, sampled.rows.tolist(), result)

    def _sampling_columns(self, sampled: SampledRows) -> SamplingColumns:
        table, rows = self._rows, sampled.rows
        temperatures = table.temperatures[rows]
        draws = np.zeros(len(rows))
        positions = sampled.ends - table.prompt_lengths[rows]
        for index in np.flatnonzero(temperatures):
            row = rows[index]
            draws[index] = uniform(
                int(table.seeds[row]), int(table.choices[row]), int(positions[index])
            )
        return SamplingColumns(
            self._to_device(temperatures),
            self._to_device(table.top_ps[rows]),
            self._to_device(draws),
        )

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device.torch_device)


def _report(drawn: Sampled, rows: list[int], result: StepResult) -> None:
    columns = zip(
        rows,
        drawn.token_ids.tolist(),
        drawn.logprobs.tolist(),
        drawn.is_valid.tolist(),
        strict=True,
    )
    for row, token_id, logprob, is_valid in columns:
        if not is_valid:
            result.failures[row] = NOT_FINITE
            continue
        result.rows.append(row)
        result.token_ids.append(token_id)
        result.logprobs.append(logprob)
