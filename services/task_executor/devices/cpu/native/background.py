"""A library that is built beside whatever else a start does; nobody waits for it."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from services.task_executor.devices.cpu.native.build import NoLibrary, build

log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class BackgroundBuild(Generic[Loaded]):
    def __init__(self, load: Callable[[Path], Loaded], *sources: Path) -> None:
        """The first source that can be had; `load` may raise OSError."""
        self._load, self._sources = load, sources
        self._loaded: Loaded | None = None
        self._thread = threading.Thread(target=self._build, name="build-native", daemon=True)
        self._thread.start()

    def get(self) -> Loaded | None:
        """None while it is not there, which may be for good."""
        return self._loaded

    def wait(self) -> Loaded | None:
        self._thread.join()
        return self._loaded

    def _build(self) -> None:
        for source in self._sources:
            try:
                self._loaded = self._load(build(source))
                return
            except (NoLibrary, OSError) as error:
                log.info("%s cannot be had here: %s", source.stem, error)
        log.info("%s is left to torch, which is slower", self._sources[-1].stem)
