"""The tokenizers of all deployments in the view, loaded before the first request asks."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deepflow.core.model_folder import ModelFolderError
from deepflow.errors import NotFound, Unavailable
from deepflow.v1 import cluster_pb2
from services.job_executor.tokenizer.model_tokenizer import ModelTokenizer
from services.job_executor.tokenizer.pool import WorkPool

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a job needs to know of its model."""

    deployment: cluster_pb2.Deployment
    tokenizer: ModelTokenizer

    @property
    def name(self) -> str:
        return self.deployment.name

    @property
    def vocab_size(self) -> int:
        return self.deployment.facts.vocab_size or self.tokenizer.vocab_size


@dataclass(slots=True)
class _Entry:
    deployment: cluster_pb2.Deployment
    loading: asyncio.Task[ModelTokenizer]

    def is_for(self, deployment: cluster_pb2.Deployment) -> bool:
        """Whether the files behind it are the same; a change of replicas loads nothing."""
        mine, other = self.deployment, deployment
        return (mine.source, mine.facts.model_revision) == (
            other.source,
            other.facts.model_revision,
        )

    @property
    def has_failed(self) -> bool:
        return self.loading.done() and (
            self.loading.cancelled() or self.loading.exception() is not None
        )


class ModelLibrary:
    def __init__(self, pool: WorkPool, load_seconds_max: float) -> None:
        self._pool = pool
        self._load_seconds_max = load_seconds_max
        self._entries: dict[str, _Entry] = {}
        self._has_view = False

    def adopt(self, deployments: Iterable[cluster_pb2.Deployment]) -> None:
        """Hold exactly these: load what is new or changed, drop what is gone."""
        self._has_view = True
        kept = {}
        for deployment in deployments:
            entry = self._entries.get(deployment.name)
            if entry is None or not entry.is_for(deployment) or entry.has_failed:
                entry = self._load(deployment)
            entry.deployment = deployment
            kept[deployment.name] = entry
        self._entries = kept

    async def get(self, name: str) -> ServedModel:
        """Raises NotFound for a model nobody deployed, Unavailable while it cannot be read."""
        entry = self._entries.get(name)
        if not self._has_view:
            raise Unavailable(
                "this job executor has not heard from the cluster yet",
                reason="cluster_unknown",
                retry_after_seconds=RETRY_SECONDS,
            )
        if entry is None:
            raise NotFound(
                f"The model `{name}` does not exist.", param="model", reason="model_not_found"
            )
        if entry.has_failed:
            entry = self._entries[name] = self._load(entry.deployment)
        try:
            async with asyncio.timeout(self._load_seconds_max):
                tokenizer = await asyncio.shield(entry.loading)
        except (TimeoutError, ModelFolderError) as error:
            raise Unavailable(
                f"the tokenizer of {name} cannot be loaded: {error or 'it takes too long'}",
                reason="tokenizer_unavailable",
                retry_after_seconds=RETRY_SECONDS,
            ) from error
        return ServedModel(entry.deployment, tokenizer)

    def close(self) -> None:
        for entry in self._entries.values():
            entry.loading.cancel()
        self._entries.clear()

    def _load(self, deployment: cluster_pb2.Deployment) -> _Entry:
        loading = asyncio.create_task(self._read(deployment))
        loading.add_done_callback(_retrieve)
        return _Entry(deployment, loading)

    async def _read(self, deployment: cluster_pb2.Deployment) -> ModelTokenizer:
        folder = Path(deployment.source)
        try:
            tokenizer = await self._pool.load(lambda: ModelTokenizer.from_folder(folder))
        except ModelFolderError as error:
            log.error("cannot load the tokenizer of %s: %s", deployment.name, error)
            raise
        log.info("tokenizer of %s loaded", deployment.name)
        return tokenizer


def _retrieve(loading: "asyncio.Task[ModelTokenizer]") -> None:
    """A failure is logged where it happens and told to whoever asks for the model."""
    if not loading.cancelled():
        loading.exception()
