"""Children scored together as a tree over their paths."""

import random
import weakref

import pytest
import torch

from evaluators.prefix_tree import evaluate_together, prefix_tree
from supernet.data.masking import Batch
from supernet.loss import evaluate
from supernet.model import SuperNet, TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    5,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "identity": OperatorSpec.of("identity"),
    },
)
SHAPE = TextShape(
    vocab_size=30, max_length=8, pad_id=0, hidden_size=8, embedding_size=4, dropout=0.1
)


def model_of():
    torch.manual_seed(0)
    return SuperNet(SPACE, SHAPE)


def batches():
    rng = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(1, 30, (4, 8), generator=rng)
    masked_N = torch.tensor([0, 5, 9, 20, 31])
    whole = Batch(ids_BT, torch.ones(4, 8, dtype=torch.bool), masked_N, ids_BT.flatten()[masked_N])
    real_BT = torch.arange(8).expand(1, 8) < 6
    padded = Batch(ids_BT[:1], real_BT, masked_N[:2], ids_BT.flatten()[masked_N[:2]])
    return [whole, padded]


def random_paths(count, *, seed=0):
    rng = random.Random(seed)
    return [SPACE.sample(rng) for _ in range(count)]


def sweep():
    """A child and all of its neighbours."""
    child = Architecture(("conv3",) * 5)
    return [child, *SPACE.neighbours(child)]


class Watched:
    """Counts what runs, and how many hidden states live while it runs."""

    def __init__(self, model):
        self.runs, self.most, self._states = [], 0, []
        model.stem.register_forward_hook(lambda *call: self._note(call[-1]))
        for layer, candidates in enumerate(model.chain.layers):
            for name, operator in candidates.items():
                operator.register_forward_hook(self._hook(layer, name))

    def _hook(self, layer, name):
        def after(_operator, _inputs, output):
            self.runs.append((layer, name))
            self._note(output)

        return after

    def _note(self, state):
        """By identity, for tensors compare by element."""
        self._states.append(weakref.ref(state))
        living = {id(state) for ref in self._states if (state := ref()) is not None}
        self.most = max(self.most, len(living))


@pytest.mark.parametrize("paths", [random_paths(40), sweep(), random_paths(1)])
def test_scores_together_are_those_of_each_child_alone_bit_for_bit(paths):
    model = model_of()
    alone = [evaluate(model, path, batches()) for path in paths]
    assert evaluate_together(model, paths, batches()) == alone


def test_every_distinct_prefix_runs_once_a_batch():
    model, paths = model_of(), random_paths(40)
    watched = Watched(model)
    evaluate_together(model, paths, batches())
    distinct = {path.operators[:length] for path in paths for length in range(1, 6)}
    assert len(watched.runs) == 2 * len(distinct) < 2 * 5 * len(paths)


@pytest.mark.parametrize(
    ("paths", "live"),
    [(random_paths(1), 2), (sweep(), 3), (list(map(Architecture, [("conv3",) * 5] * 3)), 2)],
)
def test_few_hidden_states_live_at_once(paths, live):
    model = model_of()
    watched = Watched(model)
    evaluate_together(model, paths, batches())
    assert watched.most == prefix_tree(paths).live == live


def test_never_more_live_than_the_tree_says_nor_than_the_layers():
    for seed in range(5):
        model, paths = model_of(), random_paths(60, seed=seed)
        watched = Watched(model)
        evaluate_together(model, paths, batches())
        assert watched.most <= prefix_tree(paths).live <= len(SPACE.layers) + 1
