"""Builds an engine of several ranks: rank 0 here, every other one a process of its own."""

import logging
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from deepflow.core.model_spec import ModelSpec
from deepflow.core.parallel import Layout, Share, check_layout
from deepflow.core.sizes import format_bytes
from services.task_executor.devices.base import Device
from services.task_executor.devices.cpu.cores import usable_cores
from services.task_executor.devices.registry import TorchDevice
from services.task_executor.devices.torch_import import import_torch
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.executor.built import Built, Report, grammars_beside
from services.task_executor.flowserve.executor.capacity import (
    KV_LAYOUT,
    TORCH_DEFAULTS,
    Settings,
    choose_dtype,
    decide_config,
)
from services.task_executor.flowserve.executor.row_table import SampledRows
from services.task_executor.flowserve.executor.warm_up import warm_up
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.ranks.crew import Crew
from services.task_executor.flowserve.ranks.memory import plan_ranks, room_of_each
from services.task_executor.flowserve.ranks.messages import (
    Drawn,
    Held,
    Hold,
    Join,
    Joined,
    Opened,
    Setup,
)
from services.task_executor.flowserve.ranks.tiers import build_tiers_on_ranks
from services.task_executor.flowserve.runner.ranks import RanksRunner
from services.task_executor.flowserve.tiers.base import DeviceBlocks
from services.task_executor.flowserve.tiers.build import require_memory

if TYPE_CHECKING:
    from services.task_executor.flowserve.ranks.collectives import Collectives

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Order:
    """A Load, read."""

    load: Load
    entry: TorchDevice
    layout: Layout
    spec: ModelSpec
    dtype: str

    def setup(self, rank: int) -> Setup:
        load, layout = self.load, self.layout
        return Setup(
            rank,
            layout.tensor,
            layout.pipeline,
            load.source,
            load.device,
            self.dtype,
            self.threads,
        )

    @property
    def threads(self) -> int:
        return threads_per_rank(self.load.settings.get("cpu_threads"), self.layout)


class _Own(NamedTuple):
    """What rank 0 has of the model."""

    executor: Callable[[RowMatchers], Executor]
    drawn: deque[Drawn]  # and not yet told
    blocks: DeviceBlocks


def build_on_ranks(load: Load, entry: TorchDevice, layout: Layout, report: Report) -> Built:
    """Raises ValueError where the Load cannot be served as asked, RankLost where a rank dies."""
    dtype = choose_dtype(load.dtype, entry.dtypes[0], entry.dtypes, load.device)
    order = _Order(load, entry, layout, ModelSpec.from_folder(load.source), dtype)
    check_layout(order.spec, layout)
    require_memory(load.settings.get("kv_dram_bytes", 0))
    with ExitStack() as undo:
        crew = Crew(layout.size - 1)
        undo.callback(crew.close)
        with report("import_torch"):
            crew.tell_each(order.setup)
            import_torch()
        undo.callback(_restore_threads())
        with report("read_config"):
            place = layout.places[0]
            device = entry.open(order.threads, dtype, index=place.rank)
            device.check_model(Share(order.spec, place).spec)
            config = _decide(order, device, crew)
        with grammars_beside(load, order.spec) as (grammars, reading):
            own = _load_own(order, device, config, crew, undo, report)
            executor = own.executor(RowMatchers(grammars, order.spec.vocab_size))
            # From here on the runner undoes all of it.
            depth, close = config.steps_in_flight, undo.pop_all().close
            runner = RanksRunner(executor, crew, own.drawn, depth, close)
            undo.callback(runner.close)
            with report("warm_up"):
                warm_up(runner, config)
                reading.join()
                tiers = build_tiers_on_ranks(load, layout, config, own.blocks, crew)
        undo.pop_all()
    return Built(config, runner, grammars, tiers)


def _decide(order: _Order, device: Device, crew: Crew) -> EngineConfig:
    load, spec, layout, dtypes = order.load, order.spec, order.layout, order.entry.dtypes
    settings = Settings.read(load.settings, spec, TORCH_DEFAULTS, device.block_size)
    rooms = [device.memory_available(), *(it.memory_available for it in crew.await_each(Opened))]
    plan = plan_ranks(
        spec,
        layout,
        settings,
        (order.dtype, *(name for name in dtypes if name != order.dtype)),
        available=room_of_each(
            rooms,
            is_shared=device.torch_device.type == "cpu",
            kv_dram_bytes=settings.kv_dram_bytes,
        ),
        float_dtype=dtypes[0],
    )
    # Blocks that are split in another way are blocks of another kind.
    kind = f"{KV_LAYOUT}, {layout.tensor} by {layout.pipeline}"
    config = decide_config(
        load, spec, settings, plan, dtype=order.dtype, layout=kind, float_dtype=dtypes[0]
    )
    _log_plan(load, layout, config)
    return config


def _load_own(
    order: _Order,
    device: Device,
    config: EngineConfig,
    crew: Crew,
    undo: ExitStack,
    report: Report,
) -> _Own:
    """Rank 0, while the others do the same; they have met when this returns."""
    # Late: they import torch.
    from services.task_executor.flowserve.executor.torch_executor import TorchExecutor
    from services.task_executor.flowserve.ranks.collectives import Collectives
    from services.task_executor.flowserve.ranks.loading import build_share_kv, load_share
    from services.task_executor.flowserve.ranks.pace import Pace
    from services.task_executor.flowserve.ranks.paced_executor import PacedExecutor
    from services.task_executor.flowserve.tiers.pinned_blocks import blocks_of

    place, marks = order.layout.places[0], crew.own_marks
    collectives = Collectives(place, device, marks)
    drawn: deque[Drawn] = deque()
    # By a plan that they have been told already; otherwise it may come with the next one.
    is_awaited = config.runs_ahead and config.steps_in_flight > 1
    with report("read_weights"):
        crew.tell(Hold(config))
        source, spec = order.load.source, order.spec
        model = crew.beside(lambda: load_share(source, spec, place, device, collectives))
    with report("allocate_kv"):
        kv = build_share_kv(order.spec, place, device, config)
        crew.await_each(Held)
    with report("join_ranks"), _meeting() as meeting:
        crew.tell(Join(str(meeting)))
        crew.beside(lambda: _join(collectives, meeting, crew))
        undo.callback(collectives.leave)
        crew.await_each(Joined)

    def tell_drawn(step: int, sampled: SampledRows, token_ids: npt.NDArray[np.integer]) -> None:
        rows, ends = sampled.rows.tolist(), sampled.ends.tolist()
        message = Drawn(step, rows, ends, token_ids.tolist())
        if not is_awaited:
            drawn.append(message)
            return
        marks.meet()  # for a moment; longer only where a rank reads nothing
        crew.tell(message)
        marks.go_on()

    def executor(matchers: RowMatchers) -> Executor:
        own = TorchExecutor(model, device, kv, config, matchers, tell_drawn)
        return PacedExecutor(own, marks, Pace.on(device.torch_device.type, marks))

    return _Own(executor, drawn, blocks_of(device, kv))


def _join(collectives: "Collectives", meeting: Path, crew: Crew) -> None:
    try:
        collectives.join(meeting)
    except RuntimeError as error:  # somebody who was there is gone
        raise crew.broken_by(error) from error


def threads_per_rank(asked: int | None, layout: Layout) -> int:
    """All ranks are on this machine: together they have as many threads as one alone had."""
    return max(1, (asked or usable_cores()) // layout.size)


def _restore_threads() -> Callable[[], None]:
    """Whoever holds a model alone after us has all of them again."""
    import torch  # late, as everywhere in the engine

    before = torch.get_num_threads()
    return lambda: torch.set_num_threads(before)


@contextmanager
def _meeting() -> Iterator[Path]:
    """A file that nobody else can name or open."""
    folder = Path(tempfile.mkdtemp(prefix="deepflow-ranks-"))
    try:
        yield folder / "meeting"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _log_plan(load: Load, layout: Layout, config: EngineConfig) -> None:
    log.info(
        "%s: %s weights, %s KV cache over %d ranks (tensor_parallel %d, pipeline_parallel %d)",
        load.deployment,
        format_bytes(config.weight_bytes),
        format_bytes(config.kv_bytes),
        layout.size,
        layout.tensor,
        layout.pipeline,
    )
