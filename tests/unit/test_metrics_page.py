"""The page, the names and the dashboard against the metrics that the code defines."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from tools.metrics_page import PAGE, described, sections, with_tables

COMPOSE = Path(__file__).parents[2] / "compose"
SERVERS = ("gateway", "job_executor", "task_executor", "cluster_manager", "kv_store")
ALL = [(section, it) for section, found in described().items() for it in found]
QUERYABLE = {name for _, it in ALL for name in it.names}


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (COMPOSE / "grafana" / "dashboards" / "deepflow.json").read_text()
    )
    return document


def expressions() -> list[str]:
    document = dashboard()
    found = [target["expr"] for panel in document["panels"] for target in panel.get("targets", [])]
    return found + [variable["query"] for variable in document["templating"]["list"]]


def test_the_page_is_what_the_code_says() -> None:
    page = PAGE.read_text("utf-8")
    assert sorted(sections(page)) == sorted(described())
    assert with_tables(page) == page, "docs/metrics.md is stale: run 'make docs'"


@pytest.mark.parametrize("section, metric", ALL, ids=lambda it: getattr(it, "family", it))
def test_names_follow_one_rule(section: str, metric: Any) -> None:
    assert re.fullmatch(rf"deepflow_{section}_[a-z_]+", metric.family)
    assert metric.documentation.endswith("."), "a sentence that says what is counted"
    if metric.kind == "histogram":
        assert metric.family.endswith("_seconds"), "every histogram here is of times"


def test_no_metric_is_defined_where_the_page_does_not_look() -> None:
    for service in SERVERS:
        importlib.import_module(f"services.{service}.server")
    families = {it.family for _, it in ALL}
    collected = {family.name for family in REGISTRY.collect()}
    assert {name for name in collected if name.startswith("deepflow_")} <= families


def test_the_dashboard_asks_only_for_what_exists() -> None:
    asked = {name for it in expressions() for name in re.findall(r"deepflow_\w+", it)}
    assert asked and asked <= QUERYABLE


def test_the_panels_have_names_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_every_service_is_scraped() -> None:
    document = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())
    assert {job["job_name"] for job in document["scrape_configs"]} == set(SERVERS)


def test_what_is_scraped_is_where_the_services_listen() -> None:
    scraped = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())
    stack = yaml.safe_load((COMPOSE / "docker-compose.yaml").read_text())
    for job in scraped["scrape_configs"]:
        (target,) = job["dns_sd_configs"]
        (host,) = target["names"]
        setting = "METRICS_PORT" if job["job_name"] == "gateway" else "HEALTH_PORT"
        environment = stack["services"][host]["environment"]
        assert environment[f"DEEPFLOW_{job['job_name'].upper()}_{setting}"] == str(target["port"])


def test_grafana_finds_its_source_and_its_boards() -> None:
    provisioning = COMPOSE / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())
    boards = yaml.safe_load((provisioning / "dashboards" / "deepflow.yaml").read_text())
    (uid,) = {panel["datasource"]["uid"] for panel in dashboard()["panels"] if "targets" in panel}
    assert [source["uid"] for source in sources["datasources"]] == [uid]
    assert boards["providers"][0]["options"]["path"] == "/etc/grafana/dashboards"
