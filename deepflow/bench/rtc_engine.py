"""An engine that is given one request at a time, and whose device can be emptied between them."""

import time

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Submit
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.scheduler.prefetch import BY_COST

FIRST_TOKEN = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)


class OneRequest:
    """One request at a time."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self.config = master.config
        self._handles = 0

    @property
    def choice(self) -> str:
        return self._master.prefetch.choice

    @choice.setter
    def choice(self, choice: str) -> None:
        self._master.prefetch.choice = choice

    def answer(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds to the first token, and how many of the prompt's were cached."""
        self._handles += 1
        began = time.monotonic()
        self._master.obey(Submit(self._handles, prompt, FIRST_TOKEN))
        while True:
            output = self._master.step()
            if output is not None and output.finished:
                end = output.finished[0]
                assert end.reason == "length", end.message
                return time.monotonic() - began, end.cached_tokens
            if output is None:
                wait_readable(self._master.wake_fds, self._master.seconds_to_next)

    def would_fetch(self, prompt: list[int]) -> bool:
        """What the cost model says, as things stand."""
        chain = BlockChain(self.config.identity_seed(b"").root(), self.config.block_size)
        nodes = self._master.cache.match_in_tiers(chain, prompt)
        assert nodes and not any(node.is_in(Tier.DEVICE) for node in nodes)
        before, self.choice = self.choice, BY_COST
        reused = self._master.prefetch.choose([node.nearest for node in nodes], len(prompt))
        self.choice = before
        return reused > 0

    def empty_device(self) -> None:
        """Put all of it away, then take every block of the device once."""
        cache = self._master.cache
        while unsafe := cache.idle_unsafe():
            for block in unsafe:
                cache.copy(block)
            self._settle()
        blocks = cache.alloc_blocks([], cache.num_available * self.config.block_size)
        assert blocks is not None
        cache.free(blocks)

    def _settle(self) -> None:
        """Until no copy is under way."""
        while True:
            self._master.step()
            if not self._master.cache.num_copying:
                return
            wait_readable(self._master.wake_fds, 1.0)
