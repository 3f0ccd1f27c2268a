"""Whether a task executor can use one more task now, or would only queue it: pure."""

from dataclasses import dataclass

# Of a task executor that does not tell.
SEQUENCES_DEFAULT = 256
# Prompts that are not computed yet fill this many of its steps: one that runs, two that are next.
STEPS_AHEAD = 3
# Tasks beyond its rows, so that a row that falls free is taken by its next step.
ROWS_PER_SPARE = 32
# Rows that a tenant with its fair share of them leaves to the others: one in so many.
ROWS_PER_RESERVE = 16


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a task executor told of itself when it registered; 0 = it did not."""

    sequences: int = 0
    step_tokens: int = 0
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Of all task executors of a model, as far as they are ours."""

    total: int = 0
    taken: int = 0

    @property
    def are_scarce(self) -> bool:
        """What is free is kept for those who have less than their share."""
        reserve = self.total // ROWS_PER_RESERVE
        return bool(reserve) and self.total - self.taken <= reserve


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What is there: ours as of now, the rest by its last heartbeat."""

    tasks: int = 0  # ours
    unstarted: int = 0  # of these, those whose prompt is not computed yet
    unstarted_tokens: int = 0  # of these prompts, what had to be computed
    others: int = 0  # tasks of other job executors
    free_blocks: int | None = None  # None where it holds no KV, or none is known of


def tasks_max(capacity: Capacity, others: int, job_executors: int) -> int:
    """What we may have there: our share of the rows at least, and what others leave."""
    spare = spare_tasks(capacity.sequences or SEQUENCES_DEFAULT)
    return rows_for(capacity, others, job_executors) + spare


def rows_for(capacity: Capacity, others: int, job_executors: int) -> int:
    """The same without those that only wait for a row."""
    rows = capacity.sequences or SEQUENCES_DEFAULT
    share = -(-rows // max(1, job_executors))
    unused = rows - others if job_executors > 1 else rows
    return max(share, unused)


def spare_tasks(rows: int) -> int:
    return max(1, rows // ROWS_PER_SPARE)


def has_room(capacity: Capacity, occupancy: Occupancy, job_executors: int = 1) -> bool:
    """A task executor without unstarted tasks but for a few never runs dry; more would only
    wait there, where nobody asks whose they are.
    """
    if occupancy.tasks >= tasks_max(capacity, occupancy.others, job_executors):
        return False
    if occupancy.unstarted < spare_tasks(capacity.sequences or SEQUENCES_DEFAULT):
        return True
    steps = STEPS_AHEAD * capacity.step_tokens
    if steps and occupancy.unstarted_tokens >= steps:
        return False
    return _fits(capacity, occupancy)


def _fits(capacity: Capacity, occupancy: Occupancy) -> bool:
    """Whether there is memory for what waits there already, and a block for each that grows."""
    if occupancy.free_blocks is None or not capacity.block_size:
        return True
    waiting = -(-occupancy.unstarted_tokens // capacity.block_size)
    return occupancy.free_blocks > waiting + occupancy.tasks - occupancy.unstarted
