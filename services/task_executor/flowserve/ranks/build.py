"""Builds an engine of several ranks: rank 0 here, every other one a process of its own."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from services.task_executor.flowserve.ranks.memory import plan_ranks
from services.task_executor.flowserve.ranks.messages import (
    Drawn,
    Held,
    Hold,
    Join,
    Joined,
    Opened,
    Setup,
)
from services.task_executor.flowserve.runner.ranks import RanksRunner

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


def build_on_ranks(load: Load, entry: TorchDevice, layout: Layout, report: Report) -> Built:
    """Raises ValueError where the Load cannot be served as asked, RankLost where a rank dies."""
    dtype = choose_dtype(load.dtype, entry.dtypes[0], entry.dtypes, load.device)
    order = _Order(load, entry, layout, ModelSpec.from_folder(load.source), dtype)
    check_layout(order.spec, layout)
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
            executor = own(RowMatchers(grammars, order.spec.vocab_size))
            # From here on the runner undoes all of it.
            runner = RanksRunner(executor, crew, config.steps_in_flight, undo.pop_all().close)
            undo.callback(runner.close)
            with report("warm_up"):
                warm_up(runner, config)
                reading.join()
        undo.pop_all()
    return Built(config, runner, grammars)


def _decide(order: _Order, device: Device, crew: Crew) -> EngineConfig:
    load, spec, layout, dtypes = order.load, order.spec, order.layout, order.entry.dtypes
    settings = Settings.read(load.settings, spec, TORCH_DEFAULTS, device.block_size)
    room = [device.memory_available(), *(it.memory_available for it in crew.await_each(Opened))]
    plan = plan_ranks(
        spec,
        layout,
        settings,
        (order.dtype, *(name for name in dtypes if name != order.dtype)),
        available=_room_of_each(device, room),
        float_dtype=dtypes[0],
    )
    # Blocks that are split in another way are blocks of another kind.
    kind = f"{KV_LAYOUT}, {layout.tensor} by {layout.pipeline}"
    config = decide_config(load, spec, settings, plan, dtype=order.dtype, layout=kind)
    _log_plan(load, layout, config)
    return config


def _load_own(
    order: _Order,
    device: Device,
    config: EngineConfig,
    crew: Crew,
    undo: ExitStack,
    report: Report,
) -> Callable[[RowMatchers], Executor]:
    """Rank 0, while the others do the same; they have met when this returns."""
    # Late: they import torch.
    from services.task_executor.flowserve.executor.torch_executor import TorchExecutor
    from services.task_executor.flowserve.ranks.collectives import Collectives
    from services.task_executor.flowserve.ranks.loading import build_share_kv, load_share

    place = order.layout.places[0]
    collectives = Collectives(place, device)
    with report("read_weights"):
        crew.tell(Hold(config))
        model = load_share(order.load.source, order.spec, place, device, collectives)
    with report("allocate_kv"):
        kv = build_share_kv(order.spec, place, device, config)
        crew.await_each(Held)
    with report("join_ranks"), _meeting() as meeting:
        crew.tell(Join(str(meeting)))
        collectives.join(meeting)
        undo.callback(collectives.leave)
        crew.await_each(Joined)

    def tell_drawn(step: int, sampled: SampledRows, token_ids: npt.NDArray[np.integer]) -> None:
        rows, ends = sampled.rows.tolist(), sampled.ends.tolist()
        crew.tell(Drawn(step, rows, ends, token_ids.tolist()))

    return lambda matchers: TorchExecutor(model, device, kv, config, matchers, tell_drawn)


def threads_per_rank(asked: int | None, layout: Layout) -> int:
    """All ranks are on this machine: together they have as many threads as one alone had."""
    return max(1, (asked or usable_cores()) // layout.size)


def _room_of_each(device: Device, rooms: list[int]) -> int:
    """Of the poorest rank; where all of them are in the host's memory, it is shared out."""
    is_shared = device.torch_device.type == "cpu"
    return min(rooms) // (len(rooms) if is_shared else 1)


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
