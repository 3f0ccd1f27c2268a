"""python -m services.job_executor"""

from deepflow.lifecycle import run
from services.job_executor.config import JobExecutorConfig
from services.job_executor.server import JobExecutorServer

if __name__ == "__main__":
    run("job_executor", JobExecutorConfig, JobExecutorServer)
