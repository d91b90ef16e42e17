"""Search spaces and architectures."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spaces import search_spaces

from supernet.errors import InvalidInput
from supernet.space import Architecture, OperatorSpec, SearchSpace

names = st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True)
architectures = st.lists(names, min_size=1, max_size=8).map(lambda row: Architecture(tuple(row)))
seeds = st.integers(0, 2**32)
SMALL = SearchSpace(
    (("a", "b", "c"), ("a",), ("b", "c")),
    {name: OperatorSpec.of("identity") for name in ("a", "b", "c", "d")},
)


@given(architectures)
def test_the_text_form_reads_back(architecture):
    assert Architecture.parse(str(architecture)) == architecture
    assert Architecture.parse(f" {architecture}\n") == architecture
    assert hash(Architecture.parse(str(architecture))) == hash(architecture)


@pytest.mark.parametrize("text", ["", "a--b", "-a", "A", "a-3x", "a b", "a-b_é", "a\n-b"])
def test_text_that_is_no_architecture_is_refused(text):
    with pytest.raises(InvalidInput):
        Architecture.parse(text)


def test_an_architecture_has_a_layer():
    with pytest.raises(InvalidInput, match="at least one layer"):
        Architecture(())


@given(search_spaces(), seeds)
def test_samples_lie_in_the_space_and_repeat_with_the_seed(space, seed):
    architecture = space.sample(random.Random(seed))
    assert space.contains(architecture)
    assert space.check(architecture) is architecture
    assert space.sample(random.Random(seed)) == architecture


def test_samples_are_uniform():
    rng = random.Random(0)
    drawn = [SMALL.sample(rng) for _ in range(3000)]
    counts = [drawn.count(architecture) for architecture in set(drawn)]
    assert len(counts) == SMALL.size
    assert all(400 < count < 600 for count in counts)


@given(search_spaces(), seeds)
def test_neighbours_are_all_those_that_differ_in_one_layer(space, seed):
    architecture = space.sample(random.Random(seed))
    found = list(space.neighbours(architecture))
    assert len(set(found)) == len(found) == sum(len(row) - 1 for row in space.layers)
    assert all(space.contains(n) and n.distance(architecture) == 1 for n in found)


@given(search_spaces(min_open=2), seeds, st.data())
def test_a_random_neighbour_differs_in_exactly_so_many_layers(space, seed, data):
    choices = sum(len(row) > 1 for row in space.layers)
    changes = data.draw(st.integers(1, choices))
    rng = random.Random(seed)
    architecture = space.sample(rng)
    neighbour = space.random_neighbour(architecture, rng, changes=changes)
    assert space.contains(neighbour)
    assert neighbour.distance(architecture) == changes


def test_random_neighbours_are_uniform_over_layers_then_operators():
    rng, start = random.Random(0), Architecture.parse("a-a-b")
    drawn = [str(SMALL.random_neighbour(start, rng)) for _ in range(2000)]
    assert {text: round(drawn.count(text) / 2000, 1) for text in set(drawn)} == {
        "b-a-b": pytest.approx(0.25, abs=0.06),
        "c-a-b": pytest.approx(0.25, abs=0.06),
        "a-a-c": 0.5,
    }


@pytest.mark.parametrize("changes", [0, -1, 3])
def test_more_changes_than_layers_with_a_choice_are_refused(changes):
    with pytest.raises(InvalidInput, match=f"<= 2 .*changes={changes}"):
        SMALL.random_neighbour(Architecture.parse("a-a-b"), random.Random(0), changes=changes)


@given(search_spaces(max_layers=4))
def test_size_counts_the_architectures(space):
    found = {space.sample(random.Random(0))}
    while more := {n for one in found for n in space.neighbours(one)} - found:
        found |= more
    assert len(found) == space.size


@given(search_spaces(), seeds)
def test_a_restricted_space_holds_that_architecture_alone(space, seed):
    architecture = space.sample(random.Random(seed))
    alone = space.restricted_to(architecture)
    assert alone.size == 1
    assert alone.sample(random.Random(seed + 1)) == architecture
    assert set(alone.operators) == set(architecture.operators)
    assert list(alone.neighbours(architecture)) == []


@given(search_spaces())
def test_plain_values_read_back_through_json(space):
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_an_operator_s_settings_read_back():
    spec = OperatorSpec.of("separable_conv", kernel_size=3, causal=False, name="x", rate=0.5)
    assert OperatorSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert OperatorSpec.of("k", a=1, b=2) == OperatorSpec.of("k", b=2, a=1)


@given(search_spaces(), seeds)
def test_the_cheapest_is_no_dearer_than_any_other(space, seed):
    rng = random.Random(seed)
    prices = {(layer, name): rng.random() for layer, row in enumerate(space.layers) for name in row}

    def price(architecture):
        return sum(prices[pair] for pair in enumerate(architecture.operators))

    cheapest = space.cheapest(lambda layer, name: prices[layer, name])
    assert space.contains(cheapest)
    assert all(price(cheapest) <= price(other) for other in space.neighbours(cheapest))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a-a", "has 3 layers.*has 2"),
        ("a-b-b", r"layer 1 may hold one of \['a'\]"),
        ("d-a-b", "'d'"),
    ],
)
def test_an_architecture_outside_the_space_is_refused(text, message):
    architecture = Architecture.parse(text)
    assert not SMALL.contains(architecture)
    for refuse in (SMALL.check, SMALL.restricted_to):
        with pytest.raises(InvalidInput, match=message):
            refuse(architecture)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "at least one layer"),
        (((),), "layer 0 has"),
        ((("a",), ("a", "a")), "layer 1 has"),
        ((("a", "z"),), "'z', which is not declared"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(layers, message):
    with pytest.raises(InvalidInput, match=message):
        SearchSpace(layers, SMALL.operators)


@pytest.mark.parametrize("name", ["", "Conv", "3x3", "a-b", "conv.3", "é"])
def test_an_operator_s_name_can_stand_in_the_text_form(name):
    with pytest.raises(InvalidInput, match="lower-case letters"):
        SearchSpace.uniform(2, {name: OperatorSpec.of("identity")})


def test_a_uniform_space_has_every_operator_in_every_layer():
    space = SearchSpace.uniform(3, SMALL.operators)
    assert space.size == 4**3
    assert space.layers == (("a", "b", "c", "d"),) * 3
