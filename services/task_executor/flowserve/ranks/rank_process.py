"""One further rank as a process: does what it is told until it may leave."""

import threading
from collections import deque
from pathlib import Path
from typing import TypeVar

from deepflow.core.model_spec import ModelSpec
from deepflow.core.parallel import Layout
from services.task_executor.flowserve.marks import MOMENT_NS
from services.task_executor.flowserve.plan import StepPlan
from services.task_executor.flowserve.ranks.collectives import Collectives
from services.task_executor.flowserve.ranks.follower import Follower
from services.task_executor.flowserve.ranks.loading import (
    build_share_kv,
    load_share,
    open_device,
)
from services.task_executor.flowserve.ranks.messages import (
    Copied,
    Copy,
    Drawn,
    Failed,
    FromRank,
    Held,
    Hold,
    Join,
    Joined,
    Keep,
    Kept,
    Leave,
    Opened,
    Run,
    Setup,
    ToRank,
)
from services.task_executor.flowserve.ranks.pace import Pace
from services.task_executor.flowserve.ranks.wire import Messages, decode_to_rank, encode, send
from services.task_executor.flowserve.ring import Ring

Asked = TypeVar("Asked", bound=ToRank)


class Dismissed(Exception):
    """Told to leave."""


class RankProcess:
    def __init__(self, inbox: Ring, outbox: Ring) -> None:
        self._messages = Messages(inbox.reader())
        self._outbox = outbox.writer()
        self._marks = outbox.marks
        self._saying = threading.Lock()  # threads that copy have something to say, too
        self._follower: Follower | None = None

    def run(self) -> None:
        """Until it may leave; whatever else ends it is told first."""
        try:
            self._follower = self._come_up()
            self._serve(self._follower, Pace.on(self._follower.device_type, self._marks))
        except Dismissed:
            return
        except Exception as error:
            self._say(Failed(str(error) or type(error).__name__, isinstance(error, ValueError)))
            raise
        finally:
            if self._follower is not None:
                self._follower.close()

    def _come_up(self) -> Follower:
        setup = self._expect(Setup)
        place = Layout(setup.tensor_parallel, setup.pipeline_parallel).places[setup.rank]
        device = open_device(setup.device, setup.dtype, setup.threads, place)
        self._say(Opened(device.memory_available()))
        config = self._expect(Hold).config
        spec = ModelSpec.from_folder(setup.source)
        collectives = Collectives(place, device, self._marks)
        model = load_share(setup.source, spec, place, device, collectives)
        kv = build_share_kv(spec, place, device, config)
        self._say(Held())
        collectives.join(Path(self._expect(Join).meeting))
        self._say(Joined())
        self._marks.load()
        return Follower(model, device, kv, config, place, collectives)

    def _serve(self, follower: Follower, pace: Pace) -> None:
        plans: deque[StepPlan] = deque()
        is_begun = False  # is the first of them?
        while True:
            # What was drawn comes behind plans that were made before anybody knew it.
            if not plans or (is_begun and not follower.knows_tokens(plans[0])):
                self._take(follower, plans, self._next())
                continue
            if not is_begun:
                follower.begin(plans[0])
                is_begun = True
                continue
            pace.begin(plans[0])
            follower.run(plans.popleft())
            pace.end()
            self._marks.work(MOMENT_NS)
            is_begun = False
            while (record := self._messages.take()) is not None:
                self._take(follower, plans, decode_to_rank(record))

    def _take(self, follower: Follower, plans: deque[StepPlan], message: ToRank) -> None:
        match message:
            case Run():
                for drawn in message.drawn:
                    follower.take(drawn)
                plans.append(message.plan)
            case Drawn():
                follower.take(message)
            case Keep():
                self._marks.load()
                follower.keep(Path(message.folder), lambda done: self._say(Copied(done)))
                self._say(Kept())
            case Copy():
                follower.copy(message.copies)
            case Leave():
                raise Dismissed
            case _:
                raise RuntimeError(f"a rank that runs plans is told {type(message).__name__}")

    def _expect(self, kind: type[Asked]) -> Asked:
        message = self._next()
        self._marks.load()
        if isinstance(message, Leave):
            raise Dismissed
        assert isinstance(message, kind), f"{kind.__name__} is due, not {type(message).__name__}"
        return message

    def _next(self) -> ToRank:
        while (record := self._messages.take()) is None:
            self._marks.rest()
            self._messages.wait(None)  # an engine that dies takes its ranks with it
            self._marks.work(MOMENT_NS)
        return decode_to_rank(record)

    def _say(self, answer: FromRank) -> None:
        with self._saying:
            send(self._outbox, encode(answer), lambda: None)  # it reads, or takes us with it
