"""What the supervisor says, and the moment between an order and its report."""

import pytest

from deepflow.config import ConfigError
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.drivers.base import PodReport
from services.cluster_manager.drivers.local import Row, read_reports
from services.cluster_manager.drivers.pods import PodTable
from services.cluster_manager.drivers.registry import make_driver
from tests.unit.cluster_manager.world import TE


def report(name: str = "te-0") -> dict[str, PodReport]:
    it = PodReport(name, TE, 1, is_running=True, is_stopping=False, since_unix_ms=5)
    return {name: it}


def test_rows_become_reports_and_strangers_are_left_out() -> None:
    rows = [
        Row("te-0", "task_executor", "running", 5, pid=7),
        Row("je-0", "job_executor", "restarting", 6),
        Row("te-1", "task_executor", "stopping", 7, pid=8),
        Row("redis", "redis", "running", 5, pid=9),
    ]
    reports = read_reports(rows)
    assert set(reports) == {"te-0", "je-0", "te-1"}
    assert reports["te-0"].is_running and reports["te-0"].pid == 7
    assert reports["je-0"].kind == types.MEMBER_KIND_JOB_EXECUTOR
    assert not reports["je-0"].is_running and reports["je-0"].pid == 0
    assert reports["te-1"].is_stopping and reports["te-1"].is_running


def test_an_order_counts_until_it_is_reported() -> None:
    table = PodTable()
    table.starting("te-0", TE, now=1.0)
    pods = table.merge({}, 1.1, 0)
    assert pods is not None and not pods["te-0"].is_running
    pods = table.merge(report(), 1.2, 0)
    assert pods is not None and pods["te-0"].is_running
    assert table.merge({}, 1.3, 77) == {}
    assert table.gone == {"te-0": 77}
    table.starting("te-0", TE, now=2.0)
    assert table.gone == {}


def test_an_order_that_failed_is_given_again_after_a_pause() -> None:
    table = PodTable()
    table.starting("te-0", TE, now=1.0)
    table.start_failed("te-0", now=1.5)
    assert table.merge({}, 2.4, 0)
    assert table.merge({}, 2.6, 0) == {}


def test_a_pod_that_is_being_stopped_is_marked() -> None:
    table = PodTable()
    table.stopping("te-0")
    pods = table.merge(report(), 1.0, 0)
    assert pods is not None and pods["te-0"].is_stopping
    table.stop_ended("te-0")
    pods = table.merge(report(), 1.1, 0)
    assert pods is not None and not pods["te-0"].is_stopping


def test_not_knowing_is_not_the_empty_list() -> None:
    assert PodTable().merge(None, 1.0, 0) is None


def test_the_local_driver_needs_its_socket() -> None:
    with pytest.raises(ConfigError, match="SUPERVISOR_SOCKET"):
        make_driver(ClusterManagerConfig(driver="local"))
    assert make_driver(ClusterManagerConfig()).reports is None
