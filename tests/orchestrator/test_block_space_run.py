"""A whole run in a space with a width per block, and the example of NAS-BERT's space."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import load_config, load_leaderboard, run
from orchestrator.config import load
from orchestrator.limits import Limits
from orchestrator.plan import Gpus, plan
from orchestrator.runs import Run
from orchestrator.searchers import build_searcher
from supernet.block_space import BlockSpace
from supernet.checkpoint import latest_checkpoint
from supernet.cost import CostModel
from supernet.model import SuperNet, TextShape
from supernet.space import Architecture

EXAMPLE = Path(__file__).parents[2] / "examples" / "bert_compression.yaml"
SPACE = """space={layers: 4, hidden_size: 16, block_size: 2, candidates: {
  attention_16: {kind: attention, heads: 2, width: 16},
  feed_forward_16: {kind: feed_forward, width: 16},
  attention_8: {kind: attention, heads: 1, width: 8},
  feed_forward_8: {kind: feed_forward, width: 8},
  skip: {kind: identity}}}"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    out = tmp_path_factory.mktemp("blocks") / "run"
    overrides = [
        SPACE,
        "search.limits=num_params <= 2e4",
        "search.candidates=12",
        "train.align={weight: 0.5, start: 0.3, interval: 5, sequences: 8}",
    ]
    run(load_config(tiny_config, overrides), out=out, local=True)
    return out


def test_every_scored_child_keeps_to_the_rule(out: Path) -> None:
    board, space = load_leaderboard(out), Run.open(out).space
    assert isinstance(space, BlockSpace)
    assert len(board) == 12 and board["num_params"].max() <= 2e4
    assert all(space.contains(Architecture.parse(text)) for text in board["architecture"])


def test_the_export_answers_like_the_retrained_child(out: Path) -> None:
    from transformers import AutoModelForMaskedLM

    this = Run.open(out)
    exported: Any = AutoModelForMaskedLM.from_pretrained(out / "export", trust_remote_code=True)
    child = Architecture(tuple(exported.config.layers))
    model = SuperNet(this.space.restricted_to(child), this.shape).eval()
    checkpoint = latest_checkpoint(this.store, "retrained/best", optimizer=False)
    assert checkpoint is not None
    model.load_state_dict(dict(checkpoint.weights))
    ids_BT = torch.randint(5, 30, (2, 9))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 6:] = 0
    with torch.no_grad():
        logits_BTV = exported(input_ids=ids_BT, attention_mask=mask_BT).logits
        ours_NV = model(child, ids_BT, mask_BT.bool(), torch.arange(18))
    torch.testing.assert_close(logits_BTV.flatten(0, 1), ours_NV)
    assert exported.num_parameters() == this.cost_model.cost(child).num_params


def test_optuna_proposes_children_of_the_space_alone() -> None:
    space = load(EXAMPLE).space.build()
    searcher = build_searcher({"name": "optuna"}, space, seed=0)
    for number in range(15):
        child = searcher.ask()
        assert child is not None and space.contains(child)
        searcher.tell(child, {"val_loss_nats": float(number)})


def test_the_example_is_nas_berts_space_and_its_limits_can_be_met() -> None:
    config = load(EXAMPLE)
    space = config.space.build()
    assert isinstance(space, BlockSpace) and len(space.layers) == 24 and len(space.operators) == 26
    assert space.size == (5 * (6**6 - 1) + 1) ** 4
    shape = TextShape.of(config.space, vocab_size=30522, max_length=128, pad_id=0)
    costs = CostModel(space, shape)
    for limit in ("60e6", "30e6", "10e6", "5e6"):
        Limits.parse(f"num_params <= {limit}").check_feasible(costs)
    assert costs.cost(costs.dearest("num_params")).num_params > 30e6


def test_its_smallest_limit_is_planned() -> None:
    found = plan(load(EXAMPLE, ["search.limits=num_params <= 5e6"]), Gpus(8))
    assert found.smallest_child < found.child_params <= 5e6 < found.largest_child
