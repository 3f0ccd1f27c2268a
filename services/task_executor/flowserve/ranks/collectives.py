"""What the ranks of one engine do together: sums over a stage, states from stage to stage.

They meet through a file in a folder of their own, and speak over the loopback only. Nothing is
ever pickled: only tensors of known shapes are sent.
"""

import os
from collections import deque
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from deepflow.core.parallel import Place
from services.task_executor.devices.base import Device
from services.task_executor.flowserve.marks import Marks

# No rank waits longer for another; whoever watches the ranks sees much sooner that one hangs.
WAIT_SECONDS_MAX = 300.0
# States on their way to the next stage, while this one goes on.
SENDS_MAX = 2


class Collectives:
    def __init__(self, place: Place, device: Device, marks: Marks) -> None:
        """`marks` show when this rank waits for others.

        A process is a rank of one engine at a time; raises ValueError where it is already.
        """
        if dist.is_initialized():
            raise ValueError("this process is a rank of an engine already, and can be of one only")
        self._place = place
        self._device = device
        self._marks = marks
        self._stage: dist.ProcessGroup | None = None
        self._sends: deque[tuple[dist.Work, torch.Tensor]] = deque()

    def join(self, meeting: Path) -> None:
        """Meet the others."""
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        layout = self._place.layout
        self._marks.meet()
        dist.init_process_group(
            self._device.collectives,
            store=dist.FileStore(str(meeting), layout.size),  # type: ignore[attr-defined]
            rank=self._place.rank,
            world_size=layout.size,
            timeout=timedelta(seconds=WAIT_SECONDS_MAX),
        )
        if layout.tensor > 1:
            for place in layout.places[:: layout.tensor]:  # every rank makes every group, in order
                group = dist.new_group(place.peers)
                if self._place.rank in place.peers:
                    self._stage = group
        self._marks.rest()

    def leave(self) -> None:
        self._sends.clear()
        self._stage = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Over the ranks of the stage, each of which gets it; in place."""
        self._marks.meet()
        dist.all_reduce(part, group=self._stage)
        self._marks.go_on()
        return part

    def gather(self, part: torch.Tensor, widths: list[int]) -> torch.Tensor:
        """[rows, own width] of every part -> side by side on the first; the others keep theirs."""
        widest = max(widths)
        padded = F.pad(part, (0, widest - part.shape[-1])).contiguous()
        first = self._place.peers[0]
        is_first = self._place.rank == first
        parts = [torch.empty_like(padded) for _ in widths] if is_first else None
        self._marks.meet()
        dist.gather(padded, parts, dst=first, group=self._stage)
        self._marks.go_on()
        if parts is None:
            return part
        cut = [it[:, :width] for it, width in zip(parts, widths, strict=True)]
        return torch.cat(cut, dim=-1)

    def send(self, hidden: torch.Tensor) -> None:
        """To the next stage; returns before it has arrived."""
        self._marks.meet()
        while len(self._sends) >= SENDS_MAX:
            self._sends.popleft()[0].wait()
        self._marks.go_on()
        work = dist.isend(hidden, self._place.after)
        assert work is not None
        self._sends.append((work, hidden))

    def receive(self, rows: int, width: int) -> torch.Tensor:
        """What the stage before has sent: [rows, width]."""
        device = self._device
        hidden = torch.empty(rows, width, dtype=device.dtype, device=device.torch_device)
        self._marks.meet()
        dist.recv(hidden, self._place.before)
        self._marks.go_on()
        return hidden
