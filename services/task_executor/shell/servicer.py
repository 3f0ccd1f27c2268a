"""TaskExecutorService: the gRPC face of the shell."""

from typing import Any

from deepflow.v1 import tasks_pb2
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceServicer
from services.task_executor.shell.models import ModelHolder
from services.task_executor.shell.tasks import TaskStreams


class TaskExecutorServicer(TaskExecutorServiceServicer):
    """Hands each method to the part that owns it."""

    def __init__(self, streams: TaskStreams, models: ModelHolder) -> None:
        self._streams = streams
        self._models = models

    async def Tasks(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self._streams.serve(request_iterator, context)

    async def LoadModel(
        self, request: tasks_pb2.LoadModelRequest, context: Any
    ) -> tasks_pb2.LoadModelResponse:
        self._models.check_term(request.term)
        capabilities = await self._models.load(request.deployment, request.content)
        return tasks_pb2.LoadModelResponse(capabilities=capabilities)

    async def UnloadModel(
        self, request: tasks_pb2.UnloadModelRequest, context: Any
    ) -> tasks_pb2.UnloadModelResponse:
        self._models.check_term(request.term)
        await self._models.unload(request.deployment, request.grace_seconds)
        return tasks_pb2.UnloadModelResponse()
