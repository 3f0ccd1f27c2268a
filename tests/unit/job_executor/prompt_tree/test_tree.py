"""Who holds how much of a prompt, and who is followed at all."""

from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.blocks import BlockIdentitySeed, identify
from deepflow.v1 import events_pb2
from services.job_executor.prompt_tree.tree import PromptTree, matched_blocks

SEED = BlockIdentitySeed(model_revision="r", block_size=4)


def stored(
    name: str, first_seq: int, *identities: bytes, incarnation: int = 1
) -> events_pb2.KvEvents:
    run = events_pb2.BlocksStored(identities=identities)
    return events_pb2.KvEvents(
        task_executor_id=name,
        incarnation=incarnation,
        first_seq=first_seq,
        events=[events_pb2.KvEvent(stored=run)],
    )


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(0, 20))
def test_a_bisected_match_is_the_longest(tokens: list[int], num_held: int) -> None:
    identities = identify(SEED, tokens)
    held = set(identities[:num_held]) | {b"another"}
    assert matched_blocks(held, identities) == min(num_held, len(identities))


@given(st.sets(st.integers(0, 19)))
def test_a_hole_costs_a_miss_and_never_more_than_what_is_there(held: set[int]) -> None:
    identities = identify(SEED, list(range(80)))
    found = matched_blocks({identities[at] for at in held}, identities)
    assert found == 0 if 0 not in held else 1 <= found <= max(held) + 1


def test_only_the_view_makes_it_grow() -> None:
    tree = PromptTree()
    tree.note_events(stored("stranger", 1, b"a" * 16), 0.0)
    assert tree.num_blocks == 0 and list(tree) == []
    assert tree.follow({"te-1": 1, "te-2": 1}) == ["te-1", "te-2"]
    tree.note_events(stored("te-1", 1, b"a" * 16), 0.0)
    tree.note_events(stored("te-2", 1, b"a" * 16, b"b" * 16), 0.0)
    assert tree.holders(b"a" * 16) == {"te-1", "te-2"} and tree.num_blocks == 3
    assert tree.match("te-2", [b"a" * 16, b"b" * 16, b"c" * 16]) == 2
    assert tree.follow({"te-2": 1}) == []
    assert tree.holders(b"a" * 16) == {"te-2"} and tree.match("te-1", [b"a" * 16]) == 0


def test_a_later_incarnation_holds_nothing_and_an_earlier_one_is_not_heard() -> None:
    tree = PromptTree()
    tree.follow({"te": 5})
    tree.note_events(stored("te", 1, b"a" * 16, incarnation=5), 0.0)
    tree.follow({"te": 6})
    assert tree.num_blocks == 0
    tree.note_events(stored("te", 2, b"b" * 16, incarnation=5), 0.0)
    assert tree.num_blocks == 0
    tree.note_events(stored("te", 1, b"c" * 16, incarnation=7), 0.0)
    tree.follow({"te": 6})  # a view that is late
    assert tree.holders(b"c" * 16) == {"te"}
