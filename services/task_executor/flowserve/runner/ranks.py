"""Steps run on several ranks: every plan goes to all of them, rank 0 runs in a thread of ours.

Rank 0 draws the tokens and gives the answers, so nothing is awaited from the others but that they
are alive: they meet it in the collectives of the step.
"""

from collections import deque
from collections.abc import Callable

from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.ranks.crew import Crew
from services.task_executor.flowserve.ranks.messages import Drawn, Run, for_ranks
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.runner.threaded import ThreadedRunner


class RanksRunner:
    """Also an Executor, for steps that nobody plans ahead: the warm-up."""

    def __init__(
        self,
        own: Executor,
        crew: Crew,
        drawn: deque[Drawn],
        depth: int,
        close_ranks: Callable[[], None],
    ) -> None:
        """`drawn` is what rank 0 drew and can wait for the next plan, so that ranks are woken once.

        `close_ranks` ends the crew and what rank 0 shares with it.
        """
        self.depth = depth
        self._own = ThreadedRunner(own, depth)
        self._crew = crew
        self._drawn = drawn
        self._close_ranks = close_ranks

    @property
    def wake_fds(self) -> tuple[int, ...]:
        return (*self._own.wake_fds, self._crew.fault_fd)

    @property
    def is_ready(self) -> bool:
        """Raises RankLost, also where nothing runs."""
        self._crew.require_whole()
        return self._own.is_ready

    def submit(self, plan: StepPlan) -> None:
        drawn = [self._drawn.popleft() for _ in range(len(self._drawn))]
        self._crew.tell(Run(for_ranks(plan), drawn))
        self._own.submit(plan)

    def collect(self) -> StepResult:
        wait_readable(self.wake_fds, None)
        self._crew.require_whole()
        try:
            return self._own.collect()
        except Exception as error:  # the others took part in it: no rank knows where they stand
            raise self._crew.broken_by(error) from error

    def execute(self, plan: StepPlan) -> StepResult:
        self.submit(plan)
        return self.collect()

    def close(self) -> None:
        if self._crew.is_broken:
            self._crew.kill()  # so that rank 0 waits for none of them
        self._own.close()
        self._close_ranks()
