"""From a job to its choices and tasks: every check that a request must pass before it is placed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from deepflow.errors import InvalidRequest
from deepflow.ids import new_id
from deepflow.v1 import jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs import chat, completion, sampling
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.model_tokenizer import PromptTooLong
from services.job_executor.tokenizer.pool import WorkPool

# Fewer tokens are decoded faster than a thread is woken.
INLINE_TOKENS_MAX = 512

MakePrompts = Callable[[Any, ServedModel, WorkPool, int], Awaitable[list[list[int]]]]

# A kind of job is one module with PARAM and prompts().
_KINDS: dict[str, tuple[MakePrompts, str]] = {
    "chat": (chat.prompts, chat.PARAM),
    "completion": (completion.prompts, completion.PARAM),
}


@dataclass(frozen=True, slots=True)
class Limits:
    tasks_per_job_max: int
    tokens_max: int  # prompt and answer of one sequence


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One choice to come."""

    choice_index: int
    prompt: list[int]
    max_tokens: int
    resume: list[int]
    text: str = ""  # of the prompt, where the client asked for it

    @property
    def num_tokens(self) -> int:
        """What comes before its first new token."""
        return len(self.prompt) + len(self.resume)


def kind_of(job: jobs_pb2.Job) -> str:
    """ "chat", "completion" or empty."""
    return job.WhichOneof("input") or ""


async def plan(
    job: jobs_pb2.Job, model: ServedModel, pool: WorkPool, limits: Limits
) -> list[PlannedTask]:
    """One task per choice; choice index = prompt index * n + k. Raises InvalidRequest.

    Fills in what the job's sampling leaves to the model's author.
    """
    kind = kind_of(job)
    if kind not in _KINDS:
        raise InvalidRequest(f"a job needs an input: {' or '.join(_KINDS)}", param="input")
    make_prompts, param = _KINDS[kind]
    choices_per_prompt = max(job.n, 1)
    _check_count(job, choices_per_prompt, limits.tasks_per_job_max)
    sampling.check(job.sampling, model.vocab_size)
    sampling.check_scores(job.sampling, model.deployment.device)
    try:
        prompts = await make_prompts(getattr(job, kind), model, pool, limits.tokens_max)
    except PromptTooLong as error:
        raise too_long(str(error), limits.tokens_max, param) from error
    least = _shortest_answer(job.sampling)
    rooms = [_room(prompt, least, limits.tokens_max, param) for prompt in prompts]
    prompt_tokens = sum(len(prompt) for prompt in prompts) * choices_per_prompt
    sampling.check_prompt_logprobs(job.sampling, prompt_tokens)
    texts = await _texts(job, prompts, model, pool) if returns_prompt(job) else [""] * len(prompts)
    defaults = model.deployment.facts.defaults
    job.sampling.CopyFrom(sampling.complete(job.sampling, defaults))
    resumed = {point.choice_index: list(point.resume_token_ids) for point in job.resume}
    tasks: list[PlannedTask] = []
    for prompt, room, text in zip(prompts, rooms, texts, strict=True):
        max_tokens = sampling.max_tokens_of(job.sampling, defaults, room)
        for index in range(len(tasks), len(tasks) + choices_per_prompt):
            tasks.append(PlannedTask(index, prompt, max_tokens, resumed.get(index, []), text))
    return tasks


def make_task(
    job: jobs_pb2.Job, planned: PlannedTask, attempt: int, trace: types.TraceContext
) -> tasks_pb2.Task:
    """`attempt` counts the task executors tried before: a later one is a later epoch."""
    task = tasks_pb2.Task(
        id=new_id("task"),
        job_id=job.id,
        attempt_epoch=job.attempt_epoch + attempt,
        context=job.context,
        model=job.model,
        sampling=job.sampling,
        choice_index=planned.choice_index,
        prompt_token_ids=planned.prompt,
        resume_token_ids=planned.resume,
    )
    task.context.trace.CopyFrom(trace)
    task.sampling.max_tokens = planned.max_tokens
    return task


def returns_prompt(job: jobs_pb2.Job) -> bool:
    """Logprobs of a prompt that nobody gets would be computed for nothing."""
    return job.return_prompt or job.sampling.HasField("prompt_logprobs")


async def _texts(
    job: jobs_pb2.Job, prompts: list[list[int]], model: ServedModel, pool: WorkPool
) -> list[str]:
    """The prompts as text: as they were given, decoded where they came as ids or messages."""
    given = [prompt.text for prompt in job.completion.prompts] or [""] * len(prompts)

    def decode_all() -> list[str]:
        decode = model.tokenizer.decode
        return [text or decode(ids) for text, ids in zip(given, prompts, strict=True)]

    if all(given) or sum(map(len, prompts)) < INLINE_TOKENS_MAX:
        return decode_all()
    return await pool.run(decode_all)


def _check_count(job: jobs_pb2.Job, choices_per_prompt: int, limit: int) -> None:
    num_prompts = max(len(job.completion.prompts), 1)
    num_tasks = num_prompts * choices_per_prompt
    if num_tasks > limit:
        raise InvalidRequest(
            f"{num_prompts} prompts with {choices_per_prompt} choices each make {num_tasks} "
            f"answers; at most {limit} are allowed in one request",
            param="prompt" if num_prompts > 1 else "n",
        )


def _shortest_answer(sampling: types.SamplingParams) -> int:
    """Who only looks at the prompt needs no room behind it."""
    return 0 if sampling.HasField("max_tokens") and not sampling.max_tokens else 1


def _room(prompt: list[int], least: int, tokens_max: int, param: str) -> int:
    """How many tokens may follow: `least` or more."""
    if not prompt:
        raise InvalidRequest(f"{param} must not be empty", param=param)
    if len(prompt) + least > tokens_max:
        raise too_long(f"{len(prompt)} tokens", tokens_max, param, least)
    return tokens_max - len(prompt)


def too_long(amount: str, tokens_max: int, param: str, least: int = 1) -> InvalidRequest:
    answer = ", and at least one is needed for the answer" if least else ""
    return InvalidRequest(
        f"This model's maximum context length is {tokens_max} tokens. However, your {param} "
        f"resulted in {amount}{answer}. Please reduce the length of the {param}.",
        param=param,
        reason="context_length_exceeded",
    )
