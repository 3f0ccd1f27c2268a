"""The further tiers of an engine of several ranks: each has its own, for its share of a block."""

from deepflow.core.parallel import Layout
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.ranks.crew import Crew
from services.task_executor.flowserve.ranks.crew_mover import CrewMover
from services.task_executor.flowserve.ranks.messages import Keep, Kept
from services.task_executor.flowserve.tiers.base import DeviceBlocks
from services.task_executor.flowserve.tiers.build import (
    Tiers,
    has_tiers,
    open_stores,
    prepare_folder,
)
from services.task_executor.flowserve.tiers.cost_file import CostFile
from services.task_executor.flowserve.tiers.mover import ThreadedMover


def build_tiers_on_ranks(
    load: Load, layout: Layout, config: EngineConfig, own_blocks: DeviceBlocks, crew: Crew
) -> Tiers | None:
    """None where there is no tier but the devices. Raises ValueError, RankLost."""
    if not has_tiers(config):
        return None
    block_bytes = config.kv_bytes // config.kv_blocks
    folder = prepare_folder(config, load, block_bytes, ranks=layout.size)
    crew.tell(Keep(str(folder.absolute())))
    stores = open_stores(config, own_blocks.block_bytes, folder, layout.places[0])
    own = ThreadedMover(own_blocks, *stores)
    try:
        crew.await_each(Kept)
    except BaseException:
        own.close()
        raise
    return Tiers(CrewMover(own, crew, layout.size), CostFile(folder, config, load.device))
