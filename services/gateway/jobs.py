"""From a checked request to a job, with every field that later hops rely on."""

import hashlib

from deepflow import clock, ids
from deepflow.access.names import DEFAULT_TENANT
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.schema.embedding import EmbeddingRequest
from services.gateway.schema.request import GenerationRequest

TENANT = DEFAULT_TENANT
_SEED_MASK = 2**64 - 1


def make_job(
    request: GenerationRequest,
    *,
    request_id: str,
    trace: types.TraceContext,
    seconds_max: float,
    tenant: str = TENANT,
    tenant_weight: float = 0.0,
) -> jobs.Job:
    job = jobs.Job(
        id=ids.new_id("job"),
        attempt_epoch=1,
        context=work_context(request_id, trace, seconds_max, tenant),
        model=request.model,
        sampling=_sampling(request),
        n=request.n,
        return_prompt=request.return_prompt,
        tenant_weight=tenant_weight,
        context_cache_id=request.context_cache_id,
    )
    if isinstance(request.work, jobs.ChatInput):
        job.chat.CopyFrom(request.work)
    else:
        job.completion.CopyFrom(request.work)
    return job


def make_embedding_job(
    request: EmbeddingRequest,
    *,
    request_id: str,
    trace: types.TraceContext,
    seconds_max: float,
    tenant: str = TENANT,
    tenant_weight: float = 0.0,
) -> jobs.Job:
    return jobs.Job(
        id=ids.new_id("job"),
        attempt_epoch=1,
        context=work_context(request_id, trace, seconds_max, tenant),
        model=request.model,
        n=1,
        tenant_weight=tenant_weight,
        embedding=jobs.EmbeddingInput(prompts=request.prompts, dimensions=request.dimensions),
    )


def work_context(
    request_id: str, trace: types.TraceContext | None, seconds_max: float, tenant: str
) -> types.WorkContext:
    return types.WorkContext(
        request_id=request_id,
        tenant=tenant,
        cache_salt=cache_salt(tenant),
        service_class=types.SERVICE_CLASS_INTERACTIVE,
        deadline_unix_ms=clock.unix_ms() + int(seconds_max * 1000),
        trace=trace,
    )


def cache_salt(tenant: str) -> bytes:
    """Tenants never share a prefix-cache entry: their block hashes start from different salts."""
    return hashlib.blake2b(tenant.encode(), digest_size=16, person=b"deepflow-tenant").digest()


def _sampling(request: GenerationRequest) -> types.SamplingParams:
    sampling = types.SamplingParams()
    sampling.CopyFrom(request.sampling)
    sampling.seed = ids.new_seed() if request.seed is None else request.seed & _SEED_MASK
    return sampling
