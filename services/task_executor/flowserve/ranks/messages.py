"""What an engine and one of its further ranks say to each other over two rings.

A rank is told where it stands (Setup), what to hold (Hold), whom to meet (Join), and from then on
every plan (Run) and every token that rank 0 drew (Drawn), until it may go (Leave). Where KV is kept
in further tiers, it is told where (Keep) and which blocks to copy (Copy), beside its steps.
"""

from dataclasses import replace

import msgspec

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """Open your device; answered by Opened."""

    rank: int
    tensor_parallel: int
    pipeline_parallel: int
    source: str
    device: str
    dtype: str
    threads: int


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """Read your share of the weights and take your KV memory; answered by Held."""

    config: EngineConfig


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Meet the other ranks through this file; answered by Joined."""

    meeting: str


class Drawn(msgspec.Struct, frozen=True, tag="drawn"):
    """What the sampled rows of a step drew, and at which index of their sequence it goes."""

    step: int
    rows: list[int]
    ends: list[int]
    token_ids: list[int]


class Run(msgspec.Struct, frozen=True, tag="run"):
    """A plan, behind what was drawn since the one before where that was not told at once."""

    plan: StepPlan
    drawn: list[Drawn] = []


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Open your tiers, with files under this folder; answered by Kept."""

    folder: str


class Copy(msgspec.Struct, frozen=True, tag="copy"):
    """Copy your share of these blocks; each is answered in a Copied, in any order."""

    copies: list[BlockCopy]


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    pass


ToRank = Setup | Hold | Join | Run | Drawn | Keep | Copy | Leave


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    memory_available: int


class Held(msgspec.Struct, frozen=True, tag="held"):
    pass


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    pass


class Kept(msgspec.Struct, frozen=True, tag="kept"):
    pass


class Copied(msgspec.Struct, frozen=True, tag="copied"):
    done: list[CopyDone]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The last word of a rank."""

    message: str
    is_refusal: bool  # the model, the settings or the machine is at fault, not the program


FromRank = Opened | Held | Joined | Kept | Copied | Failed


def for_ranks(plan: StepPlan) -> StepPlan:
    """The plan without what only the rank that draws needs: grammars above all, which are long."""
    if not plan.admitted:
        return plan
    return replace(plan, admitted=[_without_drawing(it) for it in plan.admitted])


def _without_drawing(admitted: AdmittedSequence) -> AdmittedSequence:
    asked = admitted.sampling
    kept = SamplingParams(asked.max_tokens, prompt_logprobs=asked.prompt_logprobs)
    return replace(admitted, sampling=kept)
