"""How a model is split: every piece is somewhere, and once where it is to be summed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.model_spec import ModelSpec, count_parameters
from deepflow.core.parallel import Layout, Share, check_layout, split
from deepflow.core.sizes import GIB
from services.task_executor.flowserve.executor.capacity import TORCH_DEFAULTS, Settings
from services.task_executor.flowserve.executor.memory import DoesNotFit
from services.task_executor.flowserve.ranks.memory import (
    plan_ranks,
    rank_footprint,
    room_of_each,
)
from services.task_executor.weights.share_folder import cut_of, is_elsewhere
from tests.unit.flowserve.model_specs import write_config

LAYOUTS = st.builds(Layout, st.sampled_from([1, 2, 4, 8]), st.integers(1, 5))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = write_config(
        tmp_path_factory.mktemp("model"),
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=77,
        attention_bias=True,
        mlp_bias=True,
    )
    return ModelSpec.from_folder(folder)


@given(count=st.integers(0, 1000), parts=st.integers(1, 20))
def test_parts_follow_one_another_and_are_nearly_equal(count: int, parts: int) -> None:
    pieces = [split(count, parts, index) for index in range(parts)]
    assert [item for piece in pieces for item in piece] == list(range(count))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@given(layout=LAYOUTS)
def test_every_layer_head_and_word_is_somewhere(spec: ModelSpec, layout: Layout) -> None:
    check_layout(spec, layout)
    shares = [Share(spec, place) for place in layout.places]
    for stage in range(layout.pipeline):
        of_stage = [it for it in shares if it.place.stage == stage]
        of_stage.sort(key=lambda it: it.place.part)
        assert [head for it in of_stage for head in it.heads] == list(range(spec.num_heads))
        assert [word for it in of_stage for word in it.words] == list(range(spec.vocab_size))
        assert {it.layers for it in of_stage} == {of_stage[0].layers}
    layers = {(it.place.stage, it.layers) for it in shares}
    assert [n for _, part in sorted(layers, key=lambda it: it[0]) for n in part] == list(range(7))


@given(layout=LAYOUTS)
def test_each_query_head_is_where_its_kv_head_is(spec: ModelSpec, layout: Layout) -> None:
    group = spec.num_heads // spec.num_kv_heads
    for place in layout.places:
        share = Share(spec, place)
        own = share.spec
        per_kv_head = own.num_heads // own.num_kv_heads
        for index, head in enumerate(share.heads):
            assert share.kv_heads[index // per_kv_head] == head // group


@given(layout=LAYOUTS)
def test_rank_0_draws_and_states_go_from_stage_to_stage(layout: Layout) -> None:
    assert layout.places[0].is_last_stage and layout.places[0].part == 0
    for place in layout.places:
        assert place.rank in place.peers and len(place.peers) == layout.tensor
        if not place.is_last_stage:
            after = layout.places[place.after]
            assert (after.stage, after.part) == (place.stage + 1, place.part)
            assert after.before == place.rank


@given(layout=LAYOUTS)
def test_only_one_rank_of_a_stage_adds_a_summed_bias(spec: ModelSpec, layout: Layout) -> None:
    name = "model.layers.2.mlp.down_proj.bias"
    holders = [it for it in layout.places if not is_elsewhere(Share(spec, it), name)]
    assert len(holders) == 1
    inputs = [cut_of(Share(spec, it), "model.layers.2.mlp.down_proj.weight") for it in holders]
    assert inputs[0] is not None and (inputs[0].axis, inputs[0].whole) == (1, 77)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(3, 1), "tensor_parallel is 3, but 8 query heads and 4 KV heads .* 1, 2, 4, 8 ran"),
        (Layout(16, 1), "tensor_parallel is 16, .* 1, 2, 4, 8 ranks"),
        (Layout(1, 8), "pipeline_parallel is 8, but must be from 1 to 7"),
    ],
)
def test_what_cannot_be_split_is_refused_with_what_can(
    spec: ModelSpec, layout: Layout, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_layout(spec, layout)


def test_an_engine_has_a_largest_number_of_ranks(spec: ModelSpec) -> None:
    many = replace(spec, num_layers=200, layer_windows=(None,) * 200)
    with pytest.raises(ValueError, match="is 160, but an engine has at most 64 ranks"):
        check_layout(many, Layout(8, 20))


def settings_of(spec: ModelSpec, **given: int) -> Settings:
    return Settings.read(given, spec, TORCH_DEFAULTS, 16)


@given(pipeline=st.integers(1, 5))
def test_stages_together_weigh_as_much_as_one_rank(spec: ModelSpec, pipeline: int) -> None:
    settings = settings_of(spec)
    feet = [
        rank_footprint(spec, place, settings, "float32", "float32")
        for place in Layout(1, pipeline).places
    ]
    # The last norm is counted on every stage, though only one has it.
    extra = (pipeline - 1) * spec.hidden_size * 4
    assert sum(foot.weight_bytes for foot in feet) == count_parameters(spec) * 4 + extra
    assert sum(foot.block_bytes for foot in feet) == 16 * spec.kv_bytes_per_token("float32")


def test_memory_is_asked_for_by_all_ranks_together(spec: ModelSpec) -> None:
    settings = settings_of(spec, kv_bytes=1 << 20)
    plan = plan_ranks(
        spec, Layout(2, 2), settings, ("float32",), available=GIB, float_dtype="float32"
    )
    assert (1 << 20) * 3 // 4 < plan.kv_bytes <= 1 << 20


def test_what_does_not_fit_is_told_of_each_rank(spec: ModelSpec) -> None:
    settings = settings_of(spec, kv_bytes=1 << 50)
    with pytest.raises(DoesNotFit, match=r"on each of 2 ranks .*does not fit.*what would fit"):
        plan_ranks(spec, Layout(2, 1), settings, ("float32",), available=GIB, float_dtype="float32")


def test_what_is_free_is_shared_out_where_all_ranks_are_in_it() -> None:
    assert room_of_each([100, 90], is_shared=True, kv_dram_bytes=30) == 30
    assert room_of_each([100, 90], is_shared=False, kv_dram_bytes=30) == 90
