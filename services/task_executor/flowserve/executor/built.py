"""What comes of a Load: an executor, with the numbers that the master plans by."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from deepflow.core.model_spec import ModelSpec
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.grammar.grammars import Grammars
from services.task_executor.flowserve.grammar.vocabulary import VocabularyFacts
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.tiers.build import Tiers

Report = Callable[[str], AbstractContextManager[None]]


class Built(NamedTuple):
    config: EngineConfig
    executor: Executor
    grammars: Grammars
    tiers: Tiers | None = None  # None: KV lies on the device only


@contextmanager
def grammars_beside(load: Load, spec: ModelSpec) -> Iterator[tuple[Grammars, threading.Thread]]:
    """Read the vocabulary beside the weights: later it would stand in the way of the steps.

    Of a load that fails nothing stays: neither the thread that reads nor what the grammars hold.
    """
    grammars = Grammars(VocabularyFacts(load.source, spec.vocab_size, spec.eos_token_ids))
    reading = threading.Thread(target=grammars.read_vocabulary, name="read-vocabulary")
    reading.start()
    try:
        yield grammars, reading
    except BaseException:
        reading.join()
        grammars.close()
        raise
