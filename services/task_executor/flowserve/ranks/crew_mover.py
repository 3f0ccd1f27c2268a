"""The TierMover of several ranks: each copies its own share of a block, and all of them must.

Copies travel on the rings of the plans, in the order in which the master thought of them. A rank is
told of few at a time, so that they never fill its ring: a token would have to wait for room there,
and the rank, in the middle of a step, for whoever sends that token.
"""

from collections.abc import Sequence

from services.task_executor.flowserve.ranks.copy_tally import CopyTally
from services.task_executor.flowserve.ranks.crew import Crew
from services.task_executor.flowserve.ranks.messages import Copied, Copy
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone
from services.task_executor.flowserve.tiers.base import TierMover


class CrewMover:
    def __init__(self, own: TierMover, crew: Crew, ranks: int) -> None:
        """`own`: rank 0's part. Those of the others go with the crew, which others close."""
        self._own = own
        self._crew = crew
        self._tally = CopyTally(ranks)

    @property
    def wake_fds(self) -> Sequence[int]:
        return [*self._own.wake_fds, *self._crew.answer_fds]

    def submit(self, copies: Sequence[BlockCopy]) -> None:
        """Raises RankLost."""
        self._tally.add(copies)
        self._tell()

    def take_done(self) -> list[CopyDone]:
        """Raises RankLost."""
        answers = self._own.take_done()
        for copied in self._crew.take_answers(Copied):
            answers += copied.done
        done = [it for answer in answers if (it := self._tally.take_answer(answer)) is not None]
        if done:
            self._tell()
        return done

    def close(self) -> None:
        self._own.close()

    def _tell(self) -> None:
        if due := self._tally.take_due():
            self._crew.tell(Copy(due))
            self._own.submit(due)
