"""The memory of a training step on one worker, by formula: states, activations, buffers.

All in bytes. Formulas follow what the code holds: weights, gradients and Adam's moments are fp32
at any precision, for bf16 is autocast. What autograd keeps of an operator was read from PyTorch's
saved tensors, and what ZeRO holds from DeepSpeed 0.19's optimisers; `benchmarks/plan.py` measures
both. Allocators' fragmentation and the device's own context come on top.

B: sequences, T: tokens, D: hidden size, I: inner size, N: heads, V: vocabulary, c: 4 bytes in
fp32 and 2 in bf16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from supernet.model import SuperNet
from supernet.operators import Attention, FeedForward, Identity, SeparableConv
from supernet.space import Architecture
from supernet.text import MaskedLMHead

FP32 = 4
BUCKET = 500_000_000 * FP32
"""DeepSpeed's `reduce_bucket_size` at its default, in which gradients wait for their reduction."""
_MOST_GATHERED = 1_000_000_000 * FP32
"""DeepSpeed's `stage3_max_live_parameters` at its default."""
_NORM_STATISTICS = 8
"""Mean and deviation of a layer normalisation, fp32, per token."""


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a worker."""

    sequences: int
    length: int
    """Tokens per sequence."""
    targets: int
    """Masked tokens of all sequences."""
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["cpu", "cuda"] = "cuda"
    """CPUs keep a dropout's mask as numbers, not as bytes, and attention's weights with it."""

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.sequences * self.length

    @property
    def compute(self) -> int:
        """Bytes per number that matrix products give: c."""
        return 2 if self.precision == "bf16" else FP32

    @property
    def cast(self) -> int:
        """Bytes per number of the copy that autocast makes of a matrix product's input."""
        return 2 if self.precision == "bf16" else 0

    def dropped(self, dropout: float) -> int:
        """Bytes per number that a dropout keeps."""
        if not dropout:
            return 0
        return 1 if self.device == "cuda" else self.compute


@dataclass(frozen=True)
class Activations:
    """What autograd keeps of a pass over one path."""

    stem: int
    layers: tuple[int, ...]
    """Of each operator, its output included."""
    head: int
    """With that of the generator, where there is one."""
    outputs: int
    """Of these, the hidden states that the loop holds until the backward pass has ended."""
    loss: int
    """On top while the gradient of the logits is made: itself, the log-probabilities' and, in
    masked LM, the logits, which the loop holds."""

    @property
    def total(self) -> int:
        """Of stem, layers and head, at the end of the forward pass."""
        return self.stem + sum(self.layers) + self.head


def activations(model: SuperNet, path: Architecture, one: Pass) -> Activations:
    """Of a path, from the sizes of its modules; the model may be on the meta device."""
    names, widths = path.operators, model.chain.widths_on(path.operators)
    operators = [model.operator(layer, name) for layer, name in enumerate(names)]
    kept = [
        operator_activations(operator, width, one)
        for operator, width in zip(operators, widths, strict=True)
    ]
    head = _of_ends(model, one)
    for layer, name in model.chain.maps_on(names):
        linear = model.chain.maps[name]
        assert isinstance(linear, nn.Linear)
        size = one.tokens * (FP32 * linear.out_features + one.cast * linear.in_features)
        size += _cast_weights(linear, one)
        if layer < len(kept):
            kept[layer] += size
        else:
            head += size
    real = [w for o, w in zip(operators, widths, strict=True) if not isinstance(o, Identity)]
    return Activations(
        stem=_of_stem(model, one),
        layers=tuple(kept),
        head=head,
        outputs=one.tokens * FP32 * (model.shape.hidden_size + sum(real)),
        loss=(2 * FP32 + (0 if model.generator else one.compute))
        * one.targets
        * model.shape.vocab_size,
    )


def operator_activations(operator: nn.Module, hidden_size: int, one: Pass) -> int:
    """What autograd keeps of an operator, its fp32 output included and its input not.

    Every kind keeps, per token, the sum before its normalisation (4D), the output (4D), two
    statistics and the mask of its dropout. Beyond that attention keeps query, key, value, their
    mixture (4cD) and a logarithm per head (4N), the feed-forward both sides of its GELU (2cI),
    the convolution both sides of its own (2cD). In bf16 each matrix product keeps a copy of its
    fp32 input (2D), and each matrix one in bf16. A user's operator is run once without memory.
    """
    if isinstance(operator, Identity):
        return 0
    per_token = 2 * FP32 * hidden_size + _NORM_STATISTICS
    if isinstance(operator, Attention):
        per_token += _inside_attention(operator, one) + one.dropped(operator.dropout) * hidden_size
    elif isinstance(operator, FeedForward):
        inner = operator.inner.out_features
        per_token += one.cast * hidden_size + 2 * one.compute * inner
        per_token += one.dropped(operator.dropout) * hidden_size
    elif isinstance(operator, SeparableConv):
        per_token += (one.cast + 2 * one.compute + one.dropped(operator.dropout)) * hidden_size
    else:
        return _traced(operator, hidden_size, one) + _cast_weights(operator, one)
    return one.tokens * per_token + _cast_weights(operator, one)


def _inside_attention(attention: Attention, one: Pass) -> int:
    """Per token; a CPU writes out the attention weights (T per token and head, fp32) where there
    is dropout (weights, mask and product) or a learnt bias (weights)."""
    width, heads = attention.query.in_features, attention.heads
    kept = (3 * one.cast + one.compute) * width
    if one.device == "cpu" and (attention.dropout or attention.relative_reach):
        matrices = 3 if attention.dropout else 1
        return kept + 3 * FP32 * width + matrices * FP32 * heads * one.length
    return kept + 3 * one.compute * width + FP32 * heads


def _of_stem(model: SuperNet, one: Pass) -> int:
    """Token ids (8), the sum before the normalisation and what comes out of it (8E), 4D where it
    is projected."""
    shape = model.shape
    per_token = 8 + (2 * FP32 + one.dropped(shape.dropout)) * shape.embedding_size
    if model.stem.projection is not None:
        per_token += one.cast * shape.embedding_size + FP32 * shape.hidden_size
    return one.tokens * (per_token + _NORM_STATISTICS) + _cast_weights(model.stem, one)


def _of_ends(model: SuperNet, one: Pass) -> int:
    """Of the head; for replaced tokens also of the generator, which runs before the child."""
    if model.generator is None:
        assert isinstance(model.head, MaskedLMHead)
        return _of_masked_lm(model.head, one)
    width = model.shape.hidden_size
    per_token = (FP32 + one.cast + 2 * one.compute) * width + 16
    generator = model.generator
    own = model.shape.generator_hidden_size
    operators = [
        operator
        for candidates in generator.chain.layers
        for operator in candidates.values()  # type: ignore[operator]
    ]
    return (
        one.tokens * per_token
        + _cast_weights(model.head, one)
        + _of_stem(model, one)
        + sum(operator_activations(operator, own, one) for operator in operators)
        + _of_masked_lm(generator.head, one)
    )


def _of_masked_lm(head: MaskedLMHead, one: Pass) -> int:
    """Per target: the hidden state, both sides of the GELU, the normalised one, and the logarithms
    of the probabilities (4V); in bf16 the decoder's copy of the embeddings (2VE)."""
    width, embedding = head.transform.in_features, head.transform.out_features
    vocabulary = head.bias.shape[0]
    per_target = (FP32 + one.cast) * width + (one.compute + 2 * FP32 + one.cast) * embedding
    per_target += FP32 * vocabulary + _NORM_STATISTICS + 16
    copies = _cast_weights(head, one) + one.cast * vocabulary * embedding
    return one.targets * per_target + copies


def _cast_weights(module: nn.Module, one: Pass) -> int:
    """The copies in bf16 that autocast keeps of the weights of matrix products."""
    products = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    return one.cast * sum(product.weight.numel() for product in products)


def _traced(operator: nn.Module, hidden_size: int, one: Pass) -> int:
    """What autograd keeps of a user's operator in fp32, from a pass on the meta device."""
    own = {id_of(parameter) for parameter in operator.parameters()}
    hidden_BTD = torch.zeros(
        one.sequences, one.length, hidden_size, device="meta", requires_grad=True
    )
    with torch.enable_grad():
        output_BTD, kept = saved_by(operator, hidden_BTD, known={*own, id_of(hidden_BTD)})
    return sum({**kept, id_of(output_BTD): output_BTD.untyped_storage().nbytes()}.values())


def id_of(tensor: torch.Tensor) -> int:
    """The same for tensors that share a storage, also where that has no memory."""
    return int(tensor.untyped_storage()._cdata)


def saved_by(
    module: nn.Module, hidden_BTD: torch.Tensor, *, known: set[int]
) -> tuple[torch.Tensor, dict[int, int]]:
    """A module's output, and bytes by storage of what autograd keeps beyond what is known."""
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id_of(tensor) not in known:
            kept[id_of(tensor)] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output_BTD: torch.Tensor = module(hidden_BTD, None)
    return output_BTD, kept


@dataclass(frozen=True)
class Teaching:
    """What a teacher of masked LM adds to a step; N: targets, V: vocabulary."""

    weights: int = 0
    """Of a model beside the super-net, fp32, whole on every worker."""
    kept: int = 0
    """Until the backward pass: the logarithms of both softened distributions (8NV)."""
    passing: int = 0
    """On top at most: logits of child and teacher (2cNV) and what their comparison takes (12NV), or
    before that the logits of another model at every token."""

    @classmethod
    def of(cls, one: Pass, vocab_size: int, *, num_params: int = 0) -> "Teaching":
        """By a path of the super-net, or by another model of so many parameters."""
        numbers = one.targets * vocab_size
        kept, compared = 2 * FP32 * numbers, (2 * one.compute + 3 * FP32) * numbers
        everywhere = one.compute * (one.tokens * vocab_size + 2 * numbers) if num_params else 0
        return cls(FP32 * num_params, kept, max(compared, everywhere - kept))


UNTAUGHT = Teaching()


@dataclass(frozen=True)
class Memory:
    """The memory of a worker at one ZeRO stage; `peak` is not their sum, for not all are there at
    once."""

    weights: int
    """fp32, those of a teacher beside the super-net too; from bf16 on there is no other copy than
    autocast's, which counts as activations."""
    master: int
    """At stages 1 and 2 the optimiser's own fp32 copy of the worker's share."""
    optimiser: int
    """Adam's two moments once every operator has been trained."""
    gradients: int
    activations: int
    buffers: int
    """Of reduction, and at stage 3 the weights gathered for use."""
    peak: int


def memory(
    *,
    stage: int,
    workers: int,
    num_params: int,
    on_path: Sequence[int],
    kept: Activations,
    alignment: int = 0,
    teaching: Teaching = UNTAUGHT,
    accumulates: bool = False,
) -> Memory:
    """A worker's memory while it trains a super-net of `num_params` parameters (P).

    Weights take 4P, Adam 8P, at stages 1 to 3 Adam 8P / workers, at stage 3 weights 4P / workers.
    On the path lie Q parameters. Gradients take 4Q at stages 0 and 1; from stage 2 on DeepSpeed
    holds the worker's share of all, and fills what is missing with zeros more than once:
    4(2P - Q) / workers at stage 2, 4(3P - Q) / workers at stage 3. Stages 1 to 3 also
    flatten the gradient into the optimiser's share (4P / workers) when it steps. The bucket of
    reduction is there during the backward pass, at stage 3 always. At stage 0 several workers
    flatten what they reduce.

    Args:
        on_path: parameters of the path's stem, layers and head in turn; the embeddings count as
            the head's, whose gradient comes first.
        alignment: bytes that MAGIC-A adds until the backward pass.
        teaching: what a teacher adds.
        accumulates: whether gradients of earlier passes are there when a step's last one begins.
    """
    total, path = FP32 * num_params, FP32 * sum(on_path)
    share = -(-total // workers) if stage else total
    missing = -(-(total - path) // workers)
    weights = teaching.weights + (total if stage < 3 else share)
    gradients = {0: path, 1: path, 2: share + missing, 3: 2 * share + missing}[stage]
    bucket = BUCKET if stage else 0
    gathered = min(path, _MOST_GATHERED) if stage == 3 else 0
    reduced = min(path, BUCKET) if workers > 1 and not stage else 0
    ready = [FP32 * size for size in on_path] if stage < 2 else [0] * len(on_path)
    standing = gradients if stage == 3 else 0
    beside = alignment + teaching.kept
    loss = max(kept.loss + teaching.kept // 2, teaching.passing)
    backward = _backward_peak(kept, ready, beside + loss, accumulates=accumulates)
    during = standing + bucket + gathered + backward
    after = gradients + max(reduced, bucket, share if stage else 0)
    fixed = weights + (share if stage in (1, 2) else 0) + 2 * share
    return Memory(
        weights=weights,
        master=share if stage in (1, 2) else 0,
        optimiser=2 * share,
        gradients=gradients,
        activations=kept.total + beside + loss,
        buffers=max(reduced, bucket) + gathered,
        peak=fixed + max(during, after),
    )


def _backward_peak(
    kept: Activations, ready: Sequence[int], beside: int, *, accumulates: bool
) -> int:
    """The most that activations and gradients take together while a backward pass walks from the
    head to the stem, with so much beside them until it begins; the layers' outputs stay, and the
    stem's own gradient of the embeddings is made beside the head's."""
    sizes = [kept.stem, *kept.layers, kept.head]
    before = sum(ready) if accumulates else 0
    most = kept.total + beside + before
    for place in range(len(sizes) - 1, -1, -1):
        left = max(sum(sizes[:place]), kept.outputs)
        done = before if accumulates else sum(ready[place:])
        most = max(most, left + done + (ready[-1] if place == 0 else 0))
    return most
