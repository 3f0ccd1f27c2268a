"""Why a choice did not end well."""

from deepflow.errors import DeepFlowError, Internal, Unavailable, from_proto
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types


def failure_of(finished: jobs.ChoiceFinished) -> DeepFlowError:
    if finished.HasField("error"):
        return from_proto(finished.error)
    if finished.reason == types.FINISH_REASON_CANCELLED:
        return Unavailable("the platform cancelled the answer; try again", reason="cancelled")
    return Internal("the answer ended without a reason", reason="broken_stream")


def unscored() -> DeepFlowError:
    return Internal("the job executor sent tokens without their scores", reason="broken_stream")
