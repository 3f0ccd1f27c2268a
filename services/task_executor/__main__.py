"""python -m services.task_executor"""

from deepflow.lifecycle import run
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.server import TaskExecutorServer

if __name__ == "__main__":
    run("task_executor", TaskExecutorConfig, TaskExecutorServer)
