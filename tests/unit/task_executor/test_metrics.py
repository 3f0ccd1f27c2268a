"""The meter against what a scrape shows of it."""

from prometheus_client import CollectorRegistry, generate_latest

from services.task_executor.flowserve.messages import Finished, GrammarDone, Loaded, StepOutput
from services.task_executor.shell.histogram import Histogram
from services.task_executor.shell.load import LoadMeter
from services.task_executor.shell.metrics import PREFIX, ShellMetrics
from services.task_executor.shell.running_task import Beginning


def step(number: int, seconds: float = 0.0, *, tokens: int = 0, **more: object) -> StepOutput:
    columns = {"accepted": [], "finished": [], "kv_changes": []} | more
    return StepOutput(
        step=number,
        seconds=seconds,
        handles=list(range(tokens)),
        first_indexes=[0] * tokens,
        token_ids=[1] * tokens,
        logprobs=[0.0] * tokens,
        waiting=3,
        running=2,
        free_blocks=5,
        **columns,  # type: ignore[arg-type]
    )


def scrape(meter: LoadMeter) -> dict[str, float]:
    registry = CollectorRegistry()
    ShellMetrics(meter, registry)
    lines = generate_latest(registry).decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name.removeprefix(PREFIX): float(value) for name, value in pairs}


def test_a_scrape_shows_what_the_engine_told() -> None:
    meter = LoadMeter()
    meter.loaded(Loaded("demo", 16, 9, 4, 100, 50))
    meter.add(step(1, 0.003, tokens=2, preemptions=1))
    ends = [Finished(1, "stop", 10, 2, 8), Finished(2, "error", 5, 0, 0, "bad", invalid=True)]
    grammars = [GrammarDone(0.004, is_good=True), GrammarDone(3.0, is_good=False)]
    meter.add(step(1, 0.003, finished=ends, grammars=grammars))  # between two steps
    meter.begun(Beginning(10.0, 10.5, 12.0, 8))
    shown = scrape(meter)
    assert shown["steps_total"] == shown["step_seconds_count"] == 1
    assert (shown["tokens_total"], shown["preemptions_total"]) == (2, 1)
    assert (shown["prompt_tokens_total"], shown["cached_prompt_tokens_total"]) == (15, 8)
    assert shown['tasks_ended_total{reason="stop"}'] == 1
    assert shown['tasks_ended_total{reason="invalid"}'] == 1
    assert shown['grammars_total{outcome="refused"}'] == 1
    assert (shown["kv_blocks"], shown["kv_blocks_free"]) == (8, 5)
    assert (shown["queue_seconds_sum"], shown["prefill_seconds_sum"]) == (0.5, 1.5)
    assert shown['deployment_held{deployment="demo"}'] == 1


def test_an_engine_that_was_lost_holds_nothing() -> None:
    meter = LoadMeter()
    meter.loaded(Loaded("demo", 16, 9, 4, 100, 50))
    meter.add(step(1, 0.003, tokens=2))
    meter.engine_lost()
    meter.add(step(1, 0.003, tokens=1))  # the next one counts its steps from one again
    shown = scrape(meter)
    assert (shown["engine_restarts_total"], shown["steps_total"]) == (1, 2)
    assert not [name for name in shown if name.startswith("deployment_held")]


def test_a_model_that_was_unloaded_is_held_no_more() -> None:
    meter = LoadMeter()
    meter.loaded(Loaded("demo", 16, 9, 4, 100, 50))
    meter.add(step(1, 0.003, tokens=2))
    meter.unloaded()
    shown = scrape(meter)
    assert not [name for name in shown if name.startswith("deployment_held")]
    assert (shown["kv_blocks"], shown["kv_blocks_free"], shown["sequences_running"]) == (0, 0, 0)
    assert (shown["tokens_total"], shown["engine_restarts_total"]) == (2, 0)


def test_a_histogram_counts_values_up_to_each_bound() -> None:
    histogram = Histogram(1, 2, 5)
    for value in (0.5, 1, 1.5, 5, 99):
        histogram.observe(value)
    family = histogram.family("x_seconds", "A test.")
    buckets = {it.labels["le"]: it.value for it in family.samples if it.name.endswith("_bucket")}
    assert buckets == {"1.0": 2, "2.0": 3, "5.0": 4, "+Inf": 5}
    assert histogram.count == 5
