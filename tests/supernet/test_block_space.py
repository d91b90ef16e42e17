"""Spaces with a width per block of layers, and networks over them."""

import itertools
import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.prefix_tree import evaluate_together
from supernet.alignment import alignment_loss
from supernet.block_space import BlockSpace
from supernet.cost import CostModel, count_params
from supernet.data.masking import Batch
from supernet.engine import PlainEngine
from supernet.errors import InvalidInput
from supernet.loss import evaluate, masked_lm_loss, masked_lm_loss_and_states
from supernet.memory import Pass, activations
from supernet.model import SuperNet, TextShape
from supernet.path_adamw import PathParameters
from supernet.sampler import MagicTSampler, build_sampler
from supernet.settings import AlignSettings, OptimiserSettings, SpaceSettings
from supernet.space import Architecture, OperatorSpec, SearchSpace

OPERATORS = {
    "att8": OperatorSpec.of("attention", heads=2, width=8),
    "ffn8": OperatorSpec.of("feed_forward", width=8),
    "att12": OperatorSpec.of("attention", heads=3, width=12),
    "ffn12": OperatorSpec.of("feed_forward", width=12),
    "skip": OperatorSpec.of("identity"),
}
SPACE = BlockSpace((tuple(OPERATORS),) * 4, OPERATORS, 2)
SHAPE = TextShape(
    vocab_size=30, max_length=6, pad_id=0, hidden_size=10, embedding_size=4, dropout=0.0
)
WIDTHS = {"att8": 8, "ffn8": 8, "att12": 12, "ffn12": 12, "skip": None}
seeds = st.integers(0, 2**32)


@st.composite
def block_spaces(draw):
    """Small spaces, some of whose layers lack identities or a width."""
    names = st.lists(st.sampled_from(sorted(OPERATORS)), min_size=1, max_size=4, unique=True)
    rows = draw(st.lists(names.map(tuple), min_size=1, max_size=4))
    size = draw(st.integers(1, 3))
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    for block in blocks:
        if not any(follows(path) for path in itertools.product(*block)):
            block[:] = [("skip", *(n for n in row if n != "skip")) for row in block]
    return BlockSpace(tuple(itertools.chain(*blocks)), OPERATORS, size)


def follows(names):
    return len({WIDTHS[name] for name in names} - {None}) < 2


def every(space):
    """All architectures, by the rule written out."""
    size = space.block_size
    return {
        Architecture(path)
        for path in itertools.product(*space.layers)
        if all(follows(path[start : start + size]) for start in range(0, len(path), size))
    }


@given(block_spaces())
@settings(deadline=None, max_examples=60)
def test_the_space_is_what_the_rule_allows(space):
    there = every(space)
    assert space.size == len(there)
    for path in itertools.product(*space.layers):
        architecture = Architecture(path)
        assert space.contains(architecture) == (architecture in there)
        if architecture in there:
            assert space.check(architecture) == architecture
        else:
            with pytest.raises(InvalidInput, match="have one width"):
                space.check(architecture)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@given(block_spaces(), seeds)
@settings(deadline=None, max_examples=60)
def test_samples_neighbours_and_coverings_lie_in_the_space(space, seed):
    rng = random.Random(seed)
    architecture = space.sample(rng)
    assert space.contains(architecture)
    near = list(space.neighbours(architecture))
    assert len(set(near)) == len(near) and architecture not in near
    assert all(space.contains(other) for other in near)
    single = {other for other in every(space) if other.distance(architecture) == 1}
    assert single <= set(near)
    for other in set(near) - single:
        differing = [
            n for n in range(len(space.layers)) if other.operators[n] != architecture.operators[n]
        ]
        assert len({layer // space.block_size for layer in differing}) == 1
    assert all(architecture in set(space.neighbours(other)) for other in near)
    if near:
        assert space.random_neighbour(architecture, rng) in near
    used = {pair for path in space.covering(rng) for pair in enumerate(path.operators)}
    assert used == {pair for path in every(space) for pair in enumerate(path.operators)}


@given(block_spaces(), seeds)
@settings(deadline=None, max_examples=60)
def test_the_cheapest_is_that_of_brute_force(space, seed):
    rng = random.Random(seed)
    costs = {(n, name): rng.uniform(-5, 5) for n, row in enumerate(space.layers) for name in row}
    maps = {
        (block, one, other): rng.uniform(-5, 5)
        for block in range(space.num_blocks + 1)
        for one in (8, 12, None)
        for other in (8, 12, None)
        if one != other
    }

    def total(architecture):
        found, before = 0.0, None
        for block, width in enumerate([*space.widths_of(architecture), "end"]):
            after = {None: before, "end": None}.get(width, width)
            found += maps[block, before, after] if before != after else 0.0
            before = after
        return found + sum(costs[pair] for pair in enumerate(architecture.operators))

    def border(block, before, width):
        return 0.0 if before == width else maps[block, before, width]

    best = space.cheapest(lambda layer, name: costs[layer, name], border)
    assert space.contains(best)
    assert total(best) == pytest.approx(min(map(total, every(space))))


def test_samples_are_uniform():
    space = BlockSpace((("att8", "skip"), ("ffn8", "ffn12", "skip")), OPERATORS, 2)
    rng = random.Random(0)
    drawn = [space.sample(rng) for _ in range(3000)]
    counts = [drawn.count(architecture) for architecture in every(space)]
    assert all(0.8 < count * space.size / 3000 < 1.2 for count in counts)


def test_a_walk_reaches_every_child_also_without_identities():
    rows = tuple(name for name in OPERATORS if name != "skip")
    space = BlockSpace((rows,) * 4, OPERATORS, 2)
    seen = {path for (path,) in MagicTSampler(space, seed=0).plan(0, 3000)}
    assert seen == every(space)


def test_as_many_changes_as_asked_for_or_a_clear_error():
    one = BlockSpace((("att8",), ("ffn8", "skip")), OPERATORS, 2)
    base = Architecture(("att8", "ffn8"))
    assert one.random_neighbour(base, random.Random(0)) == Architecture(("att8", "skip"))
    with pytest.raises(InvalidInput, match="changes=2"):
        one.random_neighbour(base, random.Random(0), changes=2)
    base = SPACE.sample(random.Random(1))
    distances = {
        SPACE.random_neighbour(base, random.Random(n), changes=3).distance(base) for n in range(50)
    }
    assert min(distances) >= 1 and max(distances) >= 3


@given(seeds)
def test_independent_choices_are_always_valid_and_read_back(seed):
    rng = random.Random(seed)
    values = {name: rng.choice(choices) for name, choices in SPACE.parameters.items()}
    architecture = SPACE.from_parameters(values)
    assert SPACE.contains(architecture)
    again = SPACE.sample(rng)
    chosen = SPACE.to_parameters(again)
    assert SPACE.from_parameters(chosen) == again
    assert all(chosen[name] in choices for name, choices in SPACE.parameters.items())


@pytest.mark.parametrize(
    ("rows", "operators", "size", "says"),
    [
        ((("att8",), ("att12",)), OPERATORS, 2, "block 0 has neither"),
        ((("att8",),), OPERATORS, 0, "1 or more"),
        ((("plain",),), {"plain": OperatorSpec.of("feed_forward")}, 1, "'plain' has None"),
        ((("skip",),), {"skip": OperatorSpec.of("identity", width=8)}, 1, "any width"),
    ],
)
def test_spaces_that_break_the_rule_are_refused(rows, operators, size, says):
    with pytest.raises(InvalidInput, match=says):
        BlockSpace(rows, operators, size)


def test_a_width_wants_a_block_size_and_fairnas_independent_layers():
    with pytest.raises(ValueError, match="block_size must say"):
        SpaceSettings(candidates={"a": {"kind": "feed_forward", "width": 8}})
    with pytest.raises(InvalidInput, match="fairnas.*share a width"):
        build_sampler({"name": "fairnas"}, SPACE, seed=0)


def test_uneven_widths_are_refused_to_searchers_that_choose_per_layer():
    uneven = BlockSpace((("att8", "att12", "ffn12"),), OPERATORS, 1)
    with pytest.raises(InvalidInput, match="every width must have the same operators"):
        _ = uneven.parameters


@given(seeds)
@settings(deadline=None, max_examples=15)
def test_costs_are_those_of_the_built_child(seed):
    child = SPACE.sample(random.Random(seed))
    alone = SuperNet(SPACE.restricted_to(child), SHAPE)
    costs = CostModel(SPACE, SHAPE)
    assert costs.cost(child).num_params == count_params(alone)
    assert {name for _, name in alone.chain.maps_on(child.operators)} == set(alone.chain.maps)
    whole = SuperNet(SPACE, SHAPE)
    assert set(alone.state_dict()) <= set(whole.state_dict())
    alone.load_state_dict({name: whole.state_dict()[name] for name in alone.state_dict()})
    ids_BT = torch.randint(0, 30, (2, 6))
    torch.testing.assert_close(alone.hidden(child, ids_BT), whole.hidden(child, ids_BT))


def test_the_extremes_are_those_of_all_children():
    costs = CostModel(SPACE, SHAPE)
    for metric in ("num_params", "flops"):
        values = [getattr(costs.cost(child), metric) for child in every(SPACE)]
        assert getattr(costs.cost(costs.cheapest(metric)), metric) == min(values)
        assert getattr(costs.cost(costs.dearest(metric)), metric) == max(values)


def _batch():
    ids_BT = torch.randint(1, 30, (3, 6))
    masked_N = torch.tensor([0, 7, 9])
    return Batch(ids_BT, torch.ones_like(ids_BT).bool(), masked_N, torch.tensor([3, 4, 5]))


def test_a_step_moves_the_maps_of_its_path_and_no_others():
    model = SuperNet(SPACE, SHAPE)
    engine = PlainEngine(model, OptimiserSettings(learning_rate=1e-2, weight_decay=0.3))
    for path in ("skip-att8-ffn12-skip", "skip-skip-skip-skip", "att12-ffn12-skip-att12"):
        child = Architecture.parse(path)
        used = {f"chain.maps.{name}" for _, name in model.chain.maps_on(child.operators)}
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        engine.begin([child])
        engine.backward(masked_lm_loss(model, child, _batch())[0])
        engine.update(1e-2)
        after = model.state_dict()
        moved = {name for name in before if not before[name].equal(after[name])}
        assert {name.rsplit(".", 1)[0] for name in moved if ".maps." in name} == used
        assert moved <= set(parameters_on(model, child))


def parameters_on(model, child):
    on_path = PathParameters(model)
    on_path.begin([child])
    return on_path.named


def test_scores_over_shared_prefixes_are_those_of_each_child():
    model, batch = SuperNet(SPACE, SHAPE), _batch()
    children = random.Random(0).sample(sorted(every(SPACE)), 25)
    together = evaluate_together(model, children, [batch])
    assert together == [evaluate(model, child, [batch]) for child in children]


def test_alignment_compares_where_widths_agree():
    model, batch = SuperNet(SPACE, SHAPE), _batch()
    child = Architecture.parse("att8-ffn8-att12-ffn12")
    _, states = masked_lm_loss_and_states(model, child, batch)
    settings_all = AlignSettings(normalise=False)

    def loss(anchor, settings=settings_all):
        return alignment_loss(model, child, Architecture.parse(anchor), states, batch, settings)

    half = loss("att12-ffn12-att12-ffn12")
    last = loss("att12-ffn12-att12-ffn12", AlignSettings(normalise=False, layers=(2, 3)))
    assert float(half.detach()) == pytest.approx(float(last.detach()) / 2) and half > 0
    assert loss("att12-ffn12-att8-ffn8") == 0
    assert loss(str(child)) == 0


@pytest.mark.parametrize("path", ["att8-ffn8-att12-ffn12", "skip-ffn12-skip-skip"])
def test_planned_activations_are_those_kept(path):
    from torch.autograd.graph import saved_tensors_hooks

    model, batch, child = SuperNet(SPACE, SHAPE), _batch(), Architecture.parse(path)
    known = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _, states = masked_lm_loss_and_states(model, child, batch)
    for state in states:
        keep(state)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    said = activations(model, child, Pass(3, 6, 3, "fp32", "cpu")).total
    assert said == pytest.approx(found, rel=0.1)
