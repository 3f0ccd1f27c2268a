"""Which drivers there are."""

from deepflow.config import ConfigError
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.drivers.base import Driver
from services.cluster_manager.drivers.local import LocalDriver
from services.cluster_manager.drivers.nothing import NoDriver


def make_driver(config: ClusterManagerConfig) -> Driver:
    if config.driver == "none":
        return NoDriver()
    if not config.supervisor_socket:
        raise ConfigError(
            "DEEPFLOW_CLUSTER_MANAGER_SUPERVISOR_SOCKET is not set: the local driver needs the"
            " path of the supervisor's socket"
        )
    return LocalDriver(config.supervisor_socket, config.stop_grace_seconds)
