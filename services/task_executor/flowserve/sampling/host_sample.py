"""What was drawn, on the host. All of it comes in one copy, for each costs a step as much."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from deepflow.core.mixing import I64
from services.task_executor.devices.base import HostCopy
from services.task_executor.flowserve.sampling.ranking import Alternatives
from services.task_executor.flowserve.sampling.sampler import Sampled

F32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
ToHost = Callable[[torch.Tensor], HostCopy]
_VALID, _SURE = 1, 2


@dataclass(frozen=True, slots=True)
class HostTops:
    """Alternatives of the rows that asked, likeliest first."""

    token_ids: I64  # [n, most]
    logprobs: F32  # likewise


@dataclass(frozen=True, slots=True)
class HostSample:
    token_ids: I64  # [rows]; 0 where the row failed
    logprobs: F32
    is_valid: Flags
    is_sure: Flags
    tops: HostTops | None


def read_sample(sampled: Sampled, to_host: ToHost) -> HostSample:
    """Waits for it."""
    alternatives = sampled.alternatives
    tops = None if alternatives is None else to_host(_pack_tops(alternatives))
    token_ids, logprobs, flags = to_host(_pack(sampled)).get().numpy()
    return HostSample(
        token_ids.astype(np.int64),
        logprobs.view(np.float32),
        flags & _VALID != 0,
        flags & _SURE != 0,
        None if tops is None else _unpack_tops(tops.get().numpy()),
    )


def _pack(sampled: Sampled) -> torch.Tensor:
    """int32 [3, rows], the bits of fp32 among them."""
    flags = sampled.is_valid.int() * _VALID + sampled.is_sure.int() * _SURE
    return torch.stack((sampled.token_ids.int(), sampled.logprobs.view(torch.int32), flags))


def _pack_tops(alternatives: Alternatives) -> torch.Tensor:
    """int32 [2, n, most], likewise."""
    bits = alternatives.logprobs.contiguous().view(torch.int32)
    return torch.stack((alternatives.token_ids.int(), bits))


def _unpack_tops(packed: npt.NDArray[np.int32]) -> HostTops:
    token_ids, bits = packed
    return HostTops(token_ids.astype(np.int64), bits.view(np.float32))
