"""One optimizer step: Muon for the matrices of the layers, AdamW for everything else."""

import torch
from torch import nn

WEIGHT_DECAY = 0.1
WARM_UP_STEPS = 50
FALLING_FROM = 0.3  # of the run: the rate is flat until there, then falls to zero
CLIP_NORM = 1.0


class Optimizer:
    """Steps a model and clears its gradients; the rate follows from the step's number."""

    def __init__(self, model: nn.Module, steps: int, rate: float) -> None:
        self._steps = steps
        self._rate = rate
        self._parameters = list(model.parameters())
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
        others = [p for name, p in named if p.ndim != 2 or ".layers." not in name]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
        ]

    def step(self, number: int) -> None:
        rate = self._rate * _share_of_rate(number, self._steps)
        nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()


def _share_of_rate(number: int, steps: int) -> float:
    warm_up = min(1.0, (number + 1) / WARM_UP_STEPS)
    fall = min(1.0, (steps - number) / (steps * (1 - FALLING_FROM)))
    return warm_up * fall
