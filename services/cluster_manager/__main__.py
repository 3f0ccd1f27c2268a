"""`python -m services.cluster_manager`."""

from deepflow.lifecycle import run
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.server import ClusterManagerServer

if __name__ == "__main__":
    run("cluster_manager", ClusterManagerConfig, ClusterManagerServer)
