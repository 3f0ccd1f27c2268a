"""The job carries every field that later hops rely on, and the catalog says who can take it."""

import pytest

from deepflow import clock
from deepflow.errors import NotFound, Unavailable
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.catalog import Catalog
from services.gateway.jobs import cache_salt, make_job
from services.gateway.schema.request import GenerationRequest

TRACE = types.TraceContext(traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")


def make(**more: object) -> jobs.Job:
    work = jobs.ChatInput(messages=[jobs.ChatMessage(role="user", content="hi")])
    request = GenerationRequest(model="m", work=work, **more)  # type: ignore[arg-type]
    return make_job(request, request_id="req-1", trace=TRACE, seconds_max=60)


def test_every_field_of_the_contract_is_filled() -> None:
    job = make(n=2, sampling=types.SamplingParams(stop=["END"], max_tokens=5), echo=True)
    assert job.id.startswith("job-") and job.attempt_epoch == 1
    context = job.context
    assert (context.request_id, context.tenant) == ("req-1", "default")
    assert context.service_class == types.SERVICE_CLASS_INTERACTIVE
    assert context.trace == TRACE
    assert 0 < context.deadline_unix_ms - clock.unix_ms() <= 60_000
    assert (job.n, list(job.sampling.stop), job.sampling.max_tokens) == (2, ["END"], 5)
    assert job.chat.messages[0].content == "hi" and job.return_prompt


def test_the_tenants_weight_travels_with_the_job() -> None:
    request = GenerationRequest(model="m", work=jobs.ChatInput())
    trace = types.TraceContext()
    job = make_job(request, request_id="r", trace=trace, seconds_max=1, tenant_weight=2.5)
    assert job.tenant_weight == 2.5


def test_a_seed_is_drawn_where_none_was_given_and_kept_where_one_was() -> None:
    assert make().sampling.seed != make().sampling.seed
    assert make(seed=5).sampling.seed == 5
    assert make(seed=-1).sampling.seed == 2**64 - 1
    assert make(seed=0).sampling.seed == 0


def test_salts_differ_between_tenants_and_never_over_time() -> None:
    assert cache_salt("a") == cache_salt("a") != cache_salt("b")
    assert make().context.cache_salt == cache_salt("default")


def test_the_catalog_tells_unknown_from_not_ready() -> None:
    with pytest.raises(Unavailable):
        Catalog(cluster.ClusterView()).deployment("m")
    loading = cluster.Member(
        id="te",
        kind=types.MEMBER_KIND_TASK_EXECUTOR,
        state=types.LIFECYCLE_STATE_LOADING,
        deployment="m",
    )
    view = cluster.ClusterView(
        term=1, version=1, members=[loading], deployments=[cluster.Deployment(name="m")]
    )
    with pytest.raises(NotFound):
        Catalog(view).deployment("other")
    with pytest.raises(Unavailable):
        Catalog(view).require_served("m")
    view.members[0].state = types.LIFECYCLE_STATE_READY
    Catalog(view).require_served("m")
