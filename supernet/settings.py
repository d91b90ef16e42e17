"""Typed settings of the data, the network and its training; `orchestrator.config` adds the rest.

Unknown keys and values out of range are refused when a settings object is made. No torch in here.
"""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

from supernet.baselines import expand_named
from supernet.block_space import BlockSpace
from supernet.space import OperatorSpec, SearchSpace

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]


DEFAULT_CANDIDATES: dict[str, dict[str, Any]] = {
    "attention": {"kind": "attention", "heads": 4},
    "feed_forward": {"kind": "feed_forward"},
    "conv3": {"kind": "separable_conv", "kernel_size": 3},
    "conv7": {"kind": "separable_conv", "kernel_size": 7},
    "identity": {"kind": "identity"},
}


DEFAULT_EPS = 1e-12
NORMALISED = ("attention", "feed_forward", "separable_conv")
"""Kinds that end with a layer normalisation."""


class Settings(BaseModel):
    """What all settings share: frozen, no unknown keys, no number read from a string."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if field and _is_number(field.annotation) and _looks_like_one(value):
                raise ValueError(f"{name} must be a number, but got {value!r}")
        return values


def _is_number(annotation: Any) -> bool:
    if annotation in (int, float):
        return True
    if get_origin(annotation) is Annotated:
        return _is_number(get_args(annotation)[0])
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return get_origin(annotation) in (Union, UnionType) and all(map(_is_number, kinds))


def _looks_like_one(value: Any) -> bool:
    """Words that are none have pydantic's own message."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, bool)


class DataSettings(Settings):
    """Which text, how it is cut into sequences, and how it is split."""

    source: str = "installed-docs"
    """A file or folder, a Hugging Face hub name, or "installed-docs"."""
    format: Literal["auto", "text", "json", "parquet", "csv", "hub"] = "auto"
    column: str = "text"
    libraries: tuple[str, ...] = ("stdlib", "numpy", "pandas", "torch", "transformers")
    """For "installed-docs": whose docstrings."""
    max_mb: Annotated[float, Field(gt=0)] | None = None
    """Stop reading the source after so many megabytes of text."""
    tokenizer: str | None = None
    """A tokenizer's folder or hub name; none: train WordPiece on the training split."""
    vocab_size: Annotated[int, Field(ge=128)] = 8192
    lowercase: bool = True
    sequence_length: Annotated[int, Field(ge=8, le=4096)] = 64
    """Tokens per packed sequence."""
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    valid_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05


class SpaceSettings(Settings):
    """The search space and the shape that all operators share.

    `{named: roberta_base, layers: 4, hidden_size: 128}` stands for the settings of a named
    architecture alone, of that many Transformer layers: see `supernet.baselines`.
    """

    layers: Annotated[int, Field(ge=1, le=256)] = 8
    hidden_size: Positive = 128
    embedding_size: Positive | None = None
    """Width of the token embeddings; none: the hidden size."""
    dropout: Fraction = 0.1
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = DEFAULT_EPS
    """Of all layer normalisations, but where a candidate of ours has its own or of a user's."""
    position_offset: Annotated[int, Field(ge=0)] = 0
    """Rows of the position table before the first token's; RoBERTa has 2."""
    type_vocab_size: Positive = 2
    """Token types; RoBERTa has 1."""
    candidates: dict[str, dict[str, Any]] = Field(
        default=DEFAULT_CANDIDATES,
        min_length=1,
    )
    """Operator name to its kind and settings, for every layer that `per_layer` does not name."""
    block_size: Positive | None = None
    """Layers in a block, in which all operators of a child have one `width`, a setting that every
    candidate but identities then has; none: all have the hidden size."""
    per_layer: dict[int, tuple[str, ...]] = Field(default_factory=dict)
    """Layer number (from 0) to the names of its candidates, where it has not all of them."""

    def build(self) -> SearchSpace:
        """The search space.

        Raises:
            InvalidInput: if a layer names an operator that is not declared.
        """
        operators = {
            name: OperatorSpec.from_dict(self._with_eps(spec))
            for name, spec in self.candidates.items()
        }
        everything = tuple(operators)
        rows = tuple(self.per_layer.get(layer, everything) for layer in range(self.layers))
        if self.block_size is None:
            return SearchSpace(rows, operators)
        return BlockSpace(rows, operators, self.block_size)

    @property
    def widest(self) -> int:
        """The most numbers that a hidden state has per token."""
        widths = [spec.get("width", 0) for spec in self.candidates.values()]
        return max([self.hidden_size, *(width for width in widths if isinstance(width, int))])

    def _with_eps(self, spec: dict[str, Any]) -> dict[str, Any]:
        if self.layer_norm_eps == DEFAULT_EPS or spec["kind"] not in NORMALISED:
            return spec
        return {"layer_norm_eps": self.layer_norm_eps, **spec}

    @model_validator(mode="before")
    @classmethod
    def _expand_named(cls, values: Any) -> Any:
        return expand_named(values) if isinstance(values, dict) and "named" in values else values

    @model_validator(mode="after")
    def _layers_exist(self) -> "SpaceSettings":
        for layer in self.per_layer:
            if not 0 <= layer < self.layers:
                raise ValueError(
                    f"per_layer names a layer from 0 to {self.layers - 1}, but got {layer}"
                )
        for name, spec in self.candidates.items():
            if not isinstance(spec.get("kind"), str):
                raise ValueError(f"candidate {name!r} needs a 'kind', but has {spec}")
            if "width" in spec and self.block_size is None:
                raise ValueError(
                    f"candidate {name!r} has a width, so block_size must say how many layers "
                    f"have one width together; 1: each has its own"
                )
        return self


class TeacherSettings(Settings):
    """A teacher of masked LM: its predictions at the masked positions are a second target."""

    model: str = "largest"
    """ "largest": the path of the super-net with most parameters, with the weights of the moment
    (in-place distillation); of the super-net's training alone. Or a model's folder, by its whole
    path, or its Hugging Face name; of stand-alone training too. It needs the data's vocabulary."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 2.0


class PretrainingSettings(Settings):
    """What models learn from text, in super-net training, in stand-alone training and in scoring.

    `masked_lm` draws its masks anew at every step, which is RoBERTa's dynamic masking.
    `replaced_tokens` is ELECTRA's (ICLR 2020): a small generator fills the masked positions, and
    the child says of every token whether it was replaced; the other settings are for it alone.
    """

    objective: Literal["masked_lm", "replaced_tokens"] = "masked_lm"
    generator_size: Annotated[float, Field(gt=0.0, le=1.0)] = 1 / 3
    """The generator's share of the hidden size, rounded to a multiple of its heads."""
    generator_layers: Positive | None = None
    """Its pairs of attention and feed-forward; none: half the space's layers, so that it is as
    deep as a Transformer of the space."""
    generator_heads: Positive = 4
    generator_relative_reach: Annotated[int, Field(ge=0)] = 0
    """Of its attention, as the `relative_reach` of a candidate; 0: it knows absolute positions
    alone, as ELECTRA's. Give it the space's, or the two know the text unequally well."""
    discriminator_weight: Annotated[float, Field(gt=0.0)] = 50.0
    """λ: loss = generator's mean over masked tokens + λ · child's mean over all real tokens."""

    teacher: TeacherSettings | None = None
    """Knowledge distillation, of masked LM alone; none: the text is the only target."""

    @model_validator(mode="after")
    def _teacher_of_masked_lm(self) -> "PretrainingSettings":
        if self.teacher and self.objective != "masked_lm":
            raise ValueError(
                f"a teacher needs the objective masked_lm, but got {self.objective!r}: leave the "
                f"teacher out"
            )
        return self

    def generator_width(self, hidden_size: int) -> int:
        """The generator's hidden size."""
        heads = self.generator_heads
        return heads * max(1, round(self.generator_size * hidden_size / heads))


class LatencySettings(Settings):
    """How the latency of children is measured, on the machine that runs the command."""

    device: str = "cpu"
    """As PyTorch names it: "cpu", "cuda", "cuda:1"."""
    threads: Positive = 1
    """Of PyTorch on a CPU."""
    batch_size: Positive = 1
    """Sequences at once, each of the data's length."""
    repeats: Annotated[int, Field(ge=5)] = 30
    """Runs behind each median."""
    held_out: Annotated[int, Field(ge=5)] = 16
    """Random children whose measured latency is compared with the predicted one."""


class OptimiserSettings(Settings):
    """The training recipe, shared by the super-net and by stand-alone training."""

    steps: Positive = 1000
    batch_size: Positive = 64
    """Sequences per optimiser step, over all workers and accumulation steps together."""
    accumulation: Positive = 1
    """Forward and backward passes that make up one optimiser step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    adam_beta2: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.98
    """Decay of AdamW's second moment; 0.98 as for RoBERTa, 0.999 as for BERT."""
    clip_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_steps: Positive = 200
    checkpoint_minutes: Annotated[float, Field(gt=0.0)] = 10.0
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3

    @model_validator(mode="after")
    def _batch_divides(self) -> "OptimiserSettings":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation, but got {self.batch_size} and "
                f"{self.accumulation}"
            )
        return self


class AlignSettings(Settings):
    """MAGIC-A (ICML 2022): children are drawn towards an anchor; see `supernet.alignment`.

    That there is a weight, an anchor and a better one takes its place is the paper's; all numbers
    and the warm-up are our own choice.
    """

    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """λ: the share of the alignment loss once it has risen; 0: none.

    At 1 its gradient is some 15 % of the task's in the quickstart's super-net.
    """
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Which layers' outputs are compared, from 0; none: all."""
    normalise: bool = True
    """Compare hidden states after layer normalisation (without gain and bias)."""
    start: Fraction = 0.5
    """The share of the steps after which the anchor is chosen and alignment begins."""
    ramp: Fraction = 0.1
    """The share of the steps over which λ then rises from 0."""
    interval: Positive = 50
    """Steps between comparisons of the anchor with challengers."""
    first_candidates: Positive = 16
    """Children compared when the anchor is chosen."""
    challengers: Positive = 4
    """Children compared with the anchor each time."""
    sequences: Positive = 64
    """Held-out sequences per comparison."""


class TrainSettings(OptimiserSettings):
    """How the super-net is trained."""

    sampler: dict[str, Any] = Field(default_factory=lambda: {"name": "magic_t"})
    """Which path sampler (see `supernet.sampler`, or "module:Class") and its settings."""
    align: AlignSettings | None = None
    """MAGIC-A's alignment; none: children are trained on the task alone."""
    workers: Positive | None = None
    """Training workers; none: one per GPU of the cluster, or per CPU core where it has none."""
    placement: Literal["pack", "spread"] = "pack"
    """On as few nodes as can be, for fast communication, or on as many as there are workers."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    collapsed_within_nats: float | None = 0.1
    """The super-net has collapsed, and the run fails, if its probe paths do not end this far below
    the training unigrams' cross-entropy (for replaced tokens its generator, and the probe paths
    below the entropy of their share); our own bar. None: not checked."""
    probe_paths: Annotated[int, Field(ge=0)] = 3
    """How many fixed paths have their valid loss measured at each checkpoint."""
    probe_sequences: Positive = 64
