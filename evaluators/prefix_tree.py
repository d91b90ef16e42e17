"""Scores a batch of children as a tree over their paths, so that what they share is computed once.

Two children with the same first k operators have the same hidden states up to layer k on the same
input. Our own method; no Ray in here.

B: sequences, T: tokens, D: hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from supernet.data.masking import Batch
from supernet.loss import count_targets, padding_mask, tally
from supernet.model import SuperNet
from supernet.space import Architecture


@dataclass(eq=False)
class Prefix:
    """A node of the tree: the children that begin with the same operators."""

    layer: int
    """Of `operator`; the root, which stands for the stem, has -1."""
    operator: str
    longer: list["Prefix"] = field(default_factory=list)
    """In the order of work: the one that needs most memory last, for ours is free by then."""
    ends: list[int] = field(default_factory=list)
    """Places of the paths that end here."""
    live: int = 1
    """Hidden states (B, T, D) held at once while this prefix's paths are computed."""

    def nodes(self) -> Iterator["Prefix"]:
        """This one and all below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.longer)


def prefix_tree(paths: Sequence[Architecture]) -> Prefix:
    """The tree over paths of the same depth; equal paths share a leaf."""
    return _grow(-1, "", [(path.operators, place) for place, path in enumerate(paths)])


def _grow(layer: int, operator: str, paths: list[tuple[tuple[str, ...], int]]) -> Prefix:
    node, following = Prefix(layer, operator), layer + 1
    groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for operators, place in paths:
        if following == len(operators):
            node.ends.append(place)
        else:
            groups.setdefault(operators[following], []).append((operators, place))
    node.longer = [_grow(following, name, group) for name, group in groups.items()]
    node.longer.sort(key=lambda longer: longer.live)
    if node.longer:
        *others, last = (longer.live for longer in node.longer)
        node.live = max([2, last, *(1 + live for live in others)])
    return node


def evaluate_together(
    model: SuperNet, paths: Sequence[Architecture], batches: Sequence[Batch]
) -> list[tuple[float, float] | str]:
    """For each path its loss in nats and its accuracy, or the error that its computation raised.

    Equal to `supernet.loss.evaluate` of each path, bit for bit, where `batches` are what
    `supernet.loss.as_scored` gives. Each distinct prefix runs once per
    batch; at most `prefix_tree(paths).live` hidden states are held at once.

    Raises:
        InvalidInput: if the batches have no masked position.
    """
    count = count_targets(batches)
    tree = prefix_tree(paths)
    sums = torch.zeros(len(paths), 2, dtype=torch.float64, device=batches[0].input_ids_BT.device)
    errors: dict[int, str] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                _run(model, tree, batch, sums, errors)
    finally:
        model.train(was_training)
    means = (sums / count).tolist()
    return [errors.get(place) or (means[place][0], means[place][1]) for place in range(len(paths))]


def _run(
    model: SuperNet,
    tree: Prefix,
    batch: Batch,
    sums: torch.Tensor,
    errors: dict[int, str],
) -> None:
    """Add each path's loss and hits on a batch to `sums` (paths, 2).

    The stack alone holds hidden states, so one is freed when its last longer prefix has run.
    """
    mask_BT = padding_mask(batch)
    stack = [(tree, model.stem(batch.input_ids_BT))]
    while stack:
        node, hidden_BTD = stack.pop()
        try:
            if node is not tree:
                hidden_BTD = model.chain.step(node.layer, node.operator, hidden_BTD, mask_BT)
            if node.ends:
                sums[node.ends] += tally(model.predict(hidden_BTD, batch.masked_N), batch)
        except Exception as error:
            # Its text alone, for the traceback holds hidden states.
            for below in node.nodes():
                errors.update(dict.fromkeys(below.ends, f"{type(error).__name__}: {error}"))
            continue
        stack.extend((longer, hidden_BTD) for longer in reversed(node.longer))
