"""Logs of ended jobs: bounded in time and memory."""

from array import array

from services.job_executor.jobs.token_log import ChoiceLog, EndedJobs, JobLog


def job_log(name: str, num_tokens: int = 10) -> JobLog:
    return JobLog(name, (ChoiceLog(token_ids=array("I", range(num_tokens))),))


def test_a_log_is_kept_for_its_time_and_no_longer() -> None:
    ended = EndedJobs(ttl_seconds=10, bytes_max=10**6)
    ended.keep(job_log("job-1"), now=100)
    assert ended.get("job-1", now=109) is not None
    assert ended.get("job-1", now=110) is None
    assert ended.num_bytes == 0


def test_the_oldest_goes_first_when_memory_is_short() -> None:
    size = job_log("any").num_bytes
    ended = EndedJobs(ttl_seconds=10, bytes_max=2 * size)
    for name in ("job-1", "job-2", "job-3"):
        ended.keep(job_log(name), now=0)
    assert ended.get("job-1", now=0) is None
    assert len(ended) == 2
    assert ended.num_bytes == 2 * size


def test_a_log_larger_than_all_memory_is_not_kept() -> None:
    ended = EndedJobs(ttl_seconds=10, bytes_max=100)
    ended.keep(job_log("job-1"), now=0)
    assert len(ended) == 0 and ended.num_bytes == 0


def test_a_later_attempt_replaces_the_earlier() -> None:
    ended = EndedJobs(ttl_seconds=10, bytes_max=10**6)
    ended.keep(job_log("job-1", 5), now=0)
    ended.keep(job_log("job-1", 7), now=1)
    log = ended.get("job-1", now=1)
    assert log is not None and len(log.choices[0].token_ids) == 7
    assert ended.num_bytes == job_log("job-1", 7).num_bytes
