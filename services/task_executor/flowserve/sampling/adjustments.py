"""What changes the logits of a row before anything is drawn from them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """What grammars allow: bit t % 32 of word t // 32 is set where token t is allowed."""

    rows: torch.Tensor  # int64 [m], indexes into the batch
    bits: torch.Tensor  # int32 [m, ceil(vocab / 32)]


@dataclass(frozen=True, slots=True)
class Cells:
    """Single logits, no cell twice, and what is added to each; -inf forbids the token."""

    rows: torch.Tensor  # int64 [n], indexes into the batch
    token_ids: torch.Tensor  # int64 [n]
    values: torch.Tensor  # fp32 [n]


@dataclass(frozen=True, slots=True)
class Penalties:
    """Rows with a penalty, and the tokens they know, padded with a token of the same kind."""

    rows: torch.Tensor  # int64 [m], indexes into the batch
    repetitions: torch.Tensor  # fp32 [m]
    presences: torch.Tensor  # fp32 [m]
    frequencies: torch.Tensor  # fp32 [m]
    known: torch.Tensor  # int64 [m, k]: prompt and answer
    answers: torch.Tensor  # int64 [m, a], a may be 0
    is_answer: torch.Tensor  # bool [m, a]: False where it is padding


@dataclass(frozen=True, slots=True)
class Adjustments:
    biased: Cells | None = None
    forbidden: Cells | None = None  # tokens that would end an answer too early
    penalties: Penalties | None = None

    @property
    def is_empty(self) -> bool:
        return self.biased is None and self.forbidden is None and self.penalties is None


def adjust(
    logits: torch.Tensor, adjustments: Adjustments, masks: TokenMasks | None
) -> torch.Tensor:
    """A new tensor where anything changes."""
    if adjustments.is_empty and masks is None:
        return logits
    logits = logits.clone()
    if adjustments.biased is not None:
        _add(logits, adjustments.biased)
    masked = None if masks is None else _masked(logits, masks)
    if adjustments.forbidden is not None:
        _add(logits, adjustments.forbidden)
    if masks is not None and masked is not None:
        # Where a grammar allows only what would end the answer too early, it ends.
        later = masked.minimum(logits[masks.rows])
        is_over = later.amax(dim=-1, keepdim=True) == -torch.inf
        logits[masks.rows] = torch.where(is_over, masked, later)
    if adjustments.penalties is not None:
        rows = adjustments.penalties.rows
        logits[rows] = penalise(logits[rows], adjustments.penalties)
    return logits


def _add(logits: torch.Tensor, cells: Cells) -> None:
    logits[cells.rows, cells.token_ids] += cells.values


def _masked(logits: torch.Tensor, masks: TokenMasks) -> torch.Tensor:
    """The logits of the masked rows, -inf where a token is not allowed."""
    is_allowed = unpack(masks.bits, logits.shape[-1])
    return logits[masks.rows].masked_fill(~is_allowed, -torch.inf)


def unpack(bits: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """bool [m, vocabulary]"""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[:, :, None] >> shifts) & 1).flatten(1)[:, :vocabulary].bool()


def penalise(logits: torch.Tensor, penalties: Penalties) -> torch.Tensor:
    """Repetition over all known tokens, then presence and frequency over the answer's."""
    known = logits.gather(-1, penalties.known)
    factors = penalties.repetitions[:, None]
    # A token that is known twice gets the same value twice.
    logits.scatter_(-1, penalties.known, torch.where(known > 0, known / factors, known * factors))
    if penalties.answers.shape[-1]:
        present = logits.gather(-1, penalties.answers)
        # A row without an answer is padded; nothing may change there.
        has_answer = penalties.is_answer.any(dim=-1, keepdim=True)
        off = penalties.presences[:, None] * has_answer
        logits.scatter_(-1, penalties.answers, present - off)
        each = penalties.frequencies[:, None] * penalties.is_answer
        logits.scatter_add_(-1, penalties.answers, -each.to(logits.dtype))
    return logits
