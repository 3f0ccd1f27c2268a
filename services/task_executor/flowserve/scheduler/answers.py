"""Whether an executor has answered what it was asked."""

from services.task_executor.flowserve.plan import StepPlan, StepResult


class StepResultError(RuntimeError):
    """An executor did not answer for exactly the rows that it was asked to sample."""


def require_answers(plan: StepPlan, result: StepResult) -> None:
    asked = [row for row, is_sampled in zip(plan.rows, plan.samples, strict=True) if is_sampled]
    if result.failures:
        asked = [row for row in asked if row not in result.failures]
    strangers = result.failures.keys() - plan.rows
    if result.step != plan.step or result.rows != asked or strangers:
        raise StepResultError(
            f"step {plan.step} asked for tokens of rows {asked}, "
            f"but step {result.step} answered for {result.rows} and failed {[*result.failures]}"
        )
