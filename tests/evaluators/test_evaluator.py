"""Scoring children with mapped weights."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evaluators.evaluator import Evaluator
from evaluators.score import Score
from supernet.cost import CostModel
from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.model import SuperNet, TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

SHAPE = TextShape(
    vocab_size=30, max_length=8, pad_id=0, hidden_size=8, embedding_size=4, dropout=0.1
)


class Refusing(nn.Module):
    """A user's operator that fails."""

    def __init__(self, *, hidden_size, dropout):
        super().__init__()

    def forward(self, hidden_BTD, mask_BT):
        raise RuntimeError("out of something")

    def flops(self, length):
        return 0


class Overflowing(Refusing):
    """A user's operator whose result is not finite."""

    def forward(self, hidden_BTD, mask_BT):
        return hidden_BTD * float("nan")


class Tabled(Refusing):
    """A user's operator with a table that is no weight."""

    def __init__(self, *, hidden_size, dropout):
        super().__init__(hidden_size=hidden_size, dropout=dropout)
        self.register_buffer("table", torch.arange(hidden_size) / 10, persistent=False)

    def forward(self, hidden_BTD, mask_BT):
        return hidden_BTD + self.table


SPACE = SearchSpace.uniform(
    2,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "refusing": OperatorSpec.of(f"{__name__}:Refusing"),
        "overflowing": OperatorSpec.of(f"{__name__}:Overflowing"),
    },
)
CHILD = Architecture.parse("attention-conv3")


def arrays_of(space=SPACE, *, seed=0):
    """Read-only, as the object store maps them."""
    torch.manual_seed(seed)
    arrays = {name: tensor.numpy() for name, tensor in SuperNet(space, SHAPE).state_dict().items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def batches():
    rng = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(1, 30, (4, 8), generator=rng)
    masked_N = torch.tensor([0, 5, 9, 20, 31])
    whole = Batch(ids_BT, torch.ones(4, 8, dtype=torch.bool), masked_N, ids_BT.flatten()[masked_N])
    real_BT = torch.arange(8).expand(1, 8) < 6
    padded = Batch(ids_BT[:1], real_BT, masked_N[:2], ids_BT.flatten()[masked_N[:2]])
    return [whole, padded]


def evaluator_of(space=SPACE, **changes):
    arguments = {"weights": arrays_of(space), "batches": batches(), "version": "7"} | changes
    weights, on = arguments.pop("weights"), arguments.pop("batches")
    return Evaluator(space, SHAPE, weights, on, **arguments)


def plain_score(weights):
    """The child on its own, without anything of the evaluator's."""
    child = SuperNet(SPACE.restricted_to(CHILD), SHAPE).eval()
    child.load_state_dict({name: torch.tensor(weights[name]) for name in child.state_dict()})
    losses, hits = [], []
    for batch in batches():
        logits_NV = child(CHILD, batch.input_ids_BT, batch.attention_mask_BT, batch.masked_N)
        losses.append(F.cross_entropy(logits_NV, batch.targets_N, reduction="none"))
        hits.append((logits_NV.argmax(-1) == batch.targets_N).float())
    return torch.cat(losses).mean().item(), torch.cat(hits).mean().item()


def test_a_score_equals_that_of_the_child_on_its_own():
    weights = arrays_of()
    score = evaluator_of(weights=weights).score(CHILD)
    loss, accuracy = plain_score(weights)
    assert score.val_loss_nats == pytest.approx(loss, rel=1e-5)
    assert score.masked_accuracy == pytest.approx(accuracy)
    assert score.error is None and score.wall_s > 0 and score.supernet_version == "7"


def test_a_score_has_the_costs_of_the_exported_child():
    score, cost = evaluator_of().score(CHILD), CostModel(SPACE, SHAPE).cost(CHILD)
    assert (score.num_params, score.flops) == (cost.num_params, cost.flops)


@pytest.mark.filterwarnings("error")
def test_read_only_weights_are_used_where_they_lie():
    weights = arrays_of()
    state = evaluator_of(weights=weights).model.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == {
        name: array.ctypes.data for name, array in weights.items()
    }


def test_tensors_are_used_where_they_lie():
    weights = {name: torch.tensor(array) for name, array in arrays_of().items()}
    state = evaluator_of(weights=weights).model.state_dict()
    assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in weights.items())


def test_scoring_changes_no_weight():
    weights = {name: array.copy() for name, array in arrays_of().items()}
    evaluator_of(weights=weights).score(CHILD)
    assert all(np.array_equal(weights[name], array) for name, array in arrays_of().items())


def test_a_child_that_fails_gets_a_row_with_the_error_and_others_go_on():
    evaluator = evaluator_of()
    failed = evaluator.score(Architecture.parse("attention-refusing"))
    assert failed.val_loss_nats is None and failed.masked_accuracy is None
    assert failed.error == "RuntimeError: out of something" and failed.num_params > 0
    assert evaluator.score(CHILD).error is None


def test_a_loss_that_is_not_finite_is_an_error():
    score = evaluator_of().score(Architecture.parse("overflowing-conv3"))
    assert score.val_loss_nats is None and score.error == "the loss must be finite, but is nan"


def test_a_row_is_json_and_reads_back():
    for text in ("attention-conv3", "overflowing-conv3"):
        score = evaluator_of().score(Architecture.parse(text))
        assert Score(**json.loads(json.dumps(score.to_row(), allow_nan=False))) == score


def test_an_architecture_of_another_space_is_refused():
    with pytest.raises(InvalidInput, match="layer 1 may hold"):
        evaluator_of().score(Architecture.parse("conv3-identity"))


def test_another_version_of_the_weights_takes_over():
    evaluator, newer = evaluator_of(), arrays_of(seed=1)
    before = evaluator.score(CHILD)
    evaluator.load(newer, "8")
    after = evaluator.score(CHILD)
    assert after.supernet_version == "8" and after.val_loss_nats != before.val_loss_nats
    assert after.val_loss_nats == pytest.approx(plain_score(newer)[0], rel=1e-5)


def test_weights_of_another_space_are_refused():
    weights = arrays_of()
    del weights["head.bias"]
    with pytest.raises(InvalidInput, match=r"another space or shape[^$]*head\.bias"):
        evaluator_of(weights=weights)


def test_an_operator_may_keep_a_table_that_is_no_weight():
    space = SearchSpace.uniform(1, {"tabled": OperatorSpec.of(f"{__name__}:Tabled")})
    weights = arrays_of(space)
    evaluator = evaluator_of(space, weights=weights)
    assert evaluator.score(Architecture.parse("tabled")).error is None
    bias = evaluator.model.state_dict()["head.bias"]
    assert bias.data_ptr() == weights["head.bias"].ctypes.data
