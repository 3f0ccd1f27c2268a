"""What the executor asks of a model."""

from typing import Protocol

import torch

from services.task_executor.devices.base import AttentionStep, LayerKv


class Model(Protocol):
    def forward(
        self,
        token_ids: torch.Tensor,  # int64 [tokens], all entries of the plan one after the other
        positions: torch.Tensor,  # int64 [tokens]
        attention: AttentionStep,
        kv: list[LayerKv],
        sampled: torch.Tensor,  # int64 [sampled]: tokens whose logits are wanted
    ) -> torch.Tensor:
        """Write the tokens' KV and return fp32 logits [sampled, vocab]."""
