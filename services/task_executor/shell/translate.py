"""The wire's words as the engine's, and back: the border between protobuf and FlowServe."""

import json
from typing import Any

from deepflow.core.sampling import Grammar, SamplingParams
from deepflow.v1 import cluster_pb2, events_pb2, tasks_pb2, types_pb2
from services.task_executor.flowserve.messages import KvChange, Load, Loaded, Submit


def to_submit(engine_handle: int, task: tasks_pb2.Task) -> Submit:
    return Submit(
        handle=engine_handle,
        prompt_token_ids=list(task.prompt_token_ids),
        sampling=to_sampling(task.sampling),
        resume_token_ids=list(task.resume_token_ids),
        choice_index=task.choice_index,
        cache_salt=task.context.cache_salt,
        priority=task.context.priority,
        embed=task.embed,
    )


def to_sampling(wire: types_pb2.SamplingParams) -> SamplingParams:
    """Absent fields mean what is usual: the job executor has filled in what the model says."""
    usual = SamplingParams(max_tokens=0)
    present = {field.name for field, _ in wire.ListFields()}

    def given(name: str) -> Any:
        return getattr(wire if name in present else usual, name)

    return SamplingParams(
        max_tokens=wire.max_tokens,
        temperature=given("temperature"),
        top_p=given("top_p"),
        seed=wire.seed,
        ignore_eos=wire.ignore_eos,
        top_k=given("top_k"),
        min_p=given("min_p"),
        repetition_penalty=given("repetition_penalty"),
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        logit_bias=dict(wire.logit_bias),
        stop_token_ids=tuple(wire.stop_token_ids),
        min_tokens=wire.min_tokens,
        logprobs=given("logprobs"),
        prompt_logprobs=given("prompt_logprobs"),
        grammar=to_grammar(wire.grammar),
        grammar_param=wire.grammar.param,
        grammar_part_params=tuple(wire.grammar.part_params),
    )


def to_grammar(wire: types_pb2.Grammar) -> Grammar | None:
    kind = wire.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "choice":
        return Grammar(kind, json.dumps(list(wire.choice.values)))
    return Grammar(kind, getattr(wire, kind))


def to_load(
    deployment: cluster_pb2.Deployment, settings: dict[str, int], kv_disk_folder: str = ""
) -> Load:
    """`settings` are this task executor's own; what the deployment says of the same goes first."""
    engine = deployment.engine
    said = {
        "max_tokens": deployment.max_tokens,
        "kv_bytes": deployment.kv_bytes,
        "tpot_ms": engine.tpot_ms,
        "ttft_ms": engine.ttft_ms,
        "tensor_parallel": engine.tensor_parallel,
        "pipeline_parallel": engine.pipeline_parallel,
        "kv_dram_bytes": engine.kv_dram_bytes,
        "kv_disk_bytes": engine.kv_disk_bytes,
    }
    asked = {name: value for name, value in said.items() if value}
    if "kv_bytes" in asked:
        settings = {name: value for name, value in settings.items() if name != "kv_blocks"}
    return Load(
        deployment=deployment.name,
        source=deployment.source,
        device=deployment.device,
        model_revision=deployment.facts.model_revision,
        settings=settings | asked,
        dtype=deployment.dtype,
        policy=engine.policy,
        kv_disk_folder=kv_disk_folder,
    )


def to_capabilities(
    loaded: Loaded, device: str, step_seconds: dict[str, float]
) -> cluster_pb2.Capabilities:
    block_bytes = loaded.kv_bytes // loaded.kv_blocks if loaded.kv_blocks else 0
    return cluster_pb2.Capabilities(
        device=device,
        block_size=loaded.block_size,
        kv_blocks=loaded.kv_blocks,
        max_sequences=loaded.max_sequences,
        max_tokens=loaded.max_tokens,
        dtype=loaded.dtype,
        weight_bytes=loaded.weight_bytes,
        kv_bytes=loaded.kv_bytes,
        model_revision=loaded.model_revision,
        kv_layout=loaded.kv_layout,
        max_step_tokens=loaded.max_step_tokens,
        tensor_parallel=loaded.tensor_parallel,
        pipeline_parallel=loaded.pipeline_parallel,
        kv_dtype=loaded.kv_dtype,
        kv_dram_bytes=loaded.kv_dram_blocks * block_bytes,
        kv_disk_bytes=loaded.kv_disk_blocks * block_bytes,
        step_seconds=step_seconds,
    )


def to_kv_event(change: KvChange) -> events_pb2.KvEvent:
    if change.stored:
        stored = events_pb2.BlocksStored(parent=change.parent, identities=change.identities)
        return events_pb2.KvEvent(stored=stored)
    return events_pb2.KvEvent(removed=events_pb2.BlocksRemoved(identities=change.identities))
