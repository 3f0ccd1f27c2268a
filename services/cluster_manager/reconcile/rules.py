"""The whole decision: give up the dead, place the models, then start and stop pods."""

from dataclasses import replace

from services.cluster_manager.reconcile.actions import Action
from services.cluster_manager.reconcile.deaths import find_dead
from services.cluster_manager.reconcile.drains import plan_drains
from services.cluster_manager.reconcile.models import place_models
from services.cluster_manager.reconcile.pods import plan_sizes, plan_task_executors
from services.cluster_manager.reconcile.state import ClusterState


def reconcile(state: ClusterState, now: float) -> list[Action]:
    """What to do now. Doing it all, and asking again, comes to rest at the desired state."""
    dead = find_dead(state, now)
    gone = {action.member for action in dead}
    living = replace(
        state,
        members={id: member for id, member in state.members.items() if id not in gone},
        assignments={id: it for id, it in state.assignments.items() if id not in gone},
    )
    placement = place_models(living, now)
    pods = [
        *plan_sizes(living, placement, now),
        *plan_task_executors(living, placement, now),
    ]
    return [*dead, *plan_drains(living, placement.leaving), *placement.actions, *pods]
