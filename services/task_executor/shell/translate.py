"""The wire's words as the engine's, and back: the border between protobuf and FlowServe."""

from deepflow.core.sampling import SamplingParams
from deepflow.v1 import cluster_pb2, events_pb2, tasks_pb2
from services.task_executor.flowserve.messages import KvChange, Load, Loaded, Submit


def to_submit(engine_handle: int, task: tasks_pb2.Task) -> Submit:
    sampling = task.sampling
    return Submit(
        handle=engine_handle,
        prompt_token_ids=list(task.prompt_token_ids),
        sampling=SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            ignore_eos=sampling.ignore_eos,
        ),
        resume_token_ids=list(task.resume_token_ids),
        choice_index=task.choice_index,
        cache_salt=task.context.cache_salt,
        priority=task.context.priority,
    )


def to_load(deployment: cluster_pb2.Deployment, settings: dict[str, int]) -> Load:
    return Load(
        deployment=deployment.name,
        source=deployment.source,
        device=deployment.device,
        model_revision=deployment.facts.model_revision,
        settings=settings,
    )


def to_capabilities(
    loaded: Loaded, device: str, step_seconds: dict[str, float]
) -> cluster_pb2.Capabilities:
    return cluster_pb2.Capabilities(
        device=device,
        block_size=loaded.block_size,
        kv_blocks=loaded.kv_blocks,
        max_sequences=loaded.max_sequences,
        max_tokens=loaded.max_tokens,
        step_seconds=step_seconds,
    )


def to_kv_event(change: KvChange) -> events_pb2.KvEvent:
    if change.stored:
        stored = events_pb2.BlocksStored(parent=change.parent, identities=change.identities)
        return events_pb2.KvEvent(stored=stored)
    return events_pb2.KvEvent(removed=events_pb2.BlocksRemoved(identities=change.identities))
