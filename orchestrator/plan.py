"""`magic-nas plan`: what a configuration will cost, before there is data or a cluster.

Parameters are counted on networks without memory, memory and operations come from formulas; times
are operations over what the GPUs do. Nothing is measured here.
"""

import json
import random
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.baseline import handmade_baseline
from orchestrator.config import Config
from orchestrator.limits import Limits, sample_within
from orchestrator.teacher import LARGEST
from orchestrator.validation import check_before_start
from supernet.cost import CostModel, count_params
from supernet.data.vocabulary import make_tokenizer
from supernet.errors import InvalidInput
from supernet.memory import FP32, Memory, Pass, Teaching, activations, memory
from supernet.model import SuperNet, TextShape, meta_supernet
from supernet.path_adamw import PathParameters
from supernet.sampler import build_sampler
from supernet.settings import OptimiserSettings
from supernet.space import Architecture, SearchSpace

STAGES = (0, 1, 2, 3)
_SAMPLES = 256
"""Children behind a mean."""
_GIB = 2**30
A100_TFLOPS = {"bf16": 312.0, "fp32": 19.5}
"""Of matrix products; the vendor's figures."""
_BACKWARD = 3
"""Forward and backward are three forward passes: the backward pass multiplies twice where the
forward pass does once."""


@dataclass(frozen=True)
class Gpus:
    """What computes."""

    count: int
    peak_tflops: float = A100_TFLOPS["bf16"]
    """Of one."""
    utilisation: float = 0.4
    """Share of the peak that training comes to; 0.4 is what well-run training of such sizes does,
    our own choice."""

    def __post_init__(self) -> None:
        for rule, holds in (
            (f"gpus must be at least 1, but got {self.count}", self.count >= 1),
            (
                f"peak-tflops must be above 0, but got {self.peak_tflops:g}",
                0 < self.peak_tflops < float("inf"),
            ),
            (
                f"utilisation must be above 0 and at most 1, but got {self.utilisation:g}",
                0 < self.utilisation <= 1,
            ),
        ):
            if not holds:
                raise InvalidInput(f"plan: {rule}")

    def days(self, flops: float, *, count: int) -> float:
        """That so many operations take on so many of them."""
        return flops / (count * self.peak_tflops * 1e12 * self.utilisation) / 86_400


@dataclass(frozen=True)
class Work:
    """What one stage of a run computes."""

    flops_per_step: float
    """For the search: per child."""
    flops: float
    tokens: int
    gpus: int
    """That can work at it: stand-alone training takes one per model."""
    days: float


@dataclass(frozen=True)
class Plan:
    """All figures; bytes, operations (2 per multiply-add), tokens, days."""

    supernet_params: int
    largest_child: int
    smallest_child: int
    transformer: int | None
    """The hand-made baseline, of BERT's pattern, nearest to `child_params`; None: there is none."""
    child_params: float
    """Mean of children drawn within the limits."""
    vocab_size: int
    sequence_length: int
    gpus: int
    micro_batch: int
    paths_per_step: int
    memory: dict[int, Memory]
    """Per GPU in super-net training, by ZeRO stage."""
    work: dict[str, Work]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plan(config: Config, gpus: Gpus) -> Plan:
    """What a run of this configuration costs on so many GPUs.

    Raises:
        InvalidInput: if the configuration breaks a rule, the limits admit no child, the batch
            does not divide, or the teacher is no model that can be loaded.
    """
    check_before_start(config, local=True, address=None, elsewhere=True)
    return _Planner(config, gpus).plan()


class _Planner:
    def __init__(self, config: Config, gpus: Gpus) -> None:
        self._config = config
        self._gpus = gpus
        self._shape = _shape(config)
        self._space: SearchSpace = config.space.build()
        self._model = meta_supernet(self._space, self._shape)
        self._costs = CostModel(self._space, self._shape)
        limits = Limits.parse(config.search.limits)
        self._limits = Limits(tuple(b for b in limits.bounds if b.metric != "latency_ms"))
        self._limits.check_feasible(self._costs)
        length = config.data.sequence_length
        self._teacher_params = _teacher_params(config)
        self._targets = round(config.data.mask_probability * length)

    def plan(self) -> Plan:
        children = self._within_limits()
        child_params = statistics.mean(map(self._params, children))
        return Plan(
            supernet_params=count_params(self._model),
            largest_child=self._params(self._costs.dearest("num_params")),
            smallest_child=self._params(self._costs.cheapest("num_params")),
            transformer=self._transformer(round(child_params)),
            child_params=child_params,
            vocab_size=self._shape.vocab_size,
            sequence_length=self._shape.max_length,
            gpus=self._gpus.count,
            micro_batch=self._micro_batch(),
            paths_per_step=self._paths_per_step(),
            memory=self._memory(),
            work=self._work(children),
        )

    def _params(self, path: Architecture) -> int:
        return self._costs.cost(path).num_params

    def _transformer(self, num_params: int) -> int | None:
        try:
            return self._params(handmade_baseline(self._space, self._costs, num_params=num_params))
        except InvalidInput:
            return None

    def _within_limits(self) -> list[Architecture]:
        """Children that a search within the limits meets; where hardly any are, the smallest."""
        rng = random.Random("plan")
        found: list[Architecture] = []
        for _ in range(_SAMPLES):
            child = sample_within(self._space, self._costs, self._limits, rng, exclude=())
            if child is None:
                return found or [self._costs.cheapest("num_params")]
            found.append(child)
        return found

    def _micro_batch(self) -> int:
        train = self._config.train
        share, rest = divmod(train.batch_size, self._gpus.count * train.accumulation)
        if rest:
            raise InvalidInput(
                f"train.batch_size must be a multiple of workers x accumulation, but got "
                f"{train.batch_size}, {self._gpus.count} and {train.accumulation}"
            )
        return share

    def _paths_per_step(self) -> int:
        sampler = build_sampler(self._config.train.sampler, self._space, seed=self._config.seed)
        return len(sampler.plan(0, 1)[0])

    def _memory(self) -> dict[int, Memory]:
        """While the largest path trains; the super-net's step holds one path's activations."""
        micro, train = self._micro_batch(), self._config.train
        one = Pass(micro, self._shape.max_length, micro * self._targets, train.precision)
        path = self._costs.dearest("num_params")
        kept = activations(self._model, path, one)
        passes = train.accumulation * self._paths_per_step()
        return {
            stage: memory(
                stage=stage,
                workers=self._gpus.count,
                num_params=count_params(self._model),
                on_path=parameters_of(self._model, path),
                kept=kept,
                alignment=self._alignment_bytes(one),
                teaching=self._teaching(one),
                accumulates=passes > 1,
            )
            for stage in STAGES
        }

    def _alignment_bytes(self, one: Pass) -> int:
        """MAGIC-A holds the anchor's outputs of the layers and the differences to them."""
        align = self._config.train.align
        if align is None or not align.weight:
            return 0
        layers = len(self._space.layers)
        compared = layers if align.layers is None else len(align.layers)
        return (layers + compared) * one.tokens * self._model.chain.widest * FP32

    def _teaching(self, one: Pass) -> Teaching:
        if self._config.pretraining.teacher is None:
            return Teaching()
        return Teaching.of(one, self._shape.vocab_size, num_params=self._teacher_params)

    def _work(self, children: list[Architecture]) -> dict[str, Work]:
        config = self._config
        drawn = random.Random("plan")
        everywhere = [self._space.sample(drawn) for _ in range(_SAMPLES)]
        inside = statistics.mean(map(self._forward, children))
        found: dict[str, Work] = {}
        if config.search.scorer is None:
            step = self._step_flops(statistics.mean(map(self._forward, everywhere)))
            found["train"] = self._training(config.train, step, models=1)
            tuned = self._tuned_sequences()
            found["search"] = self._of(
                config.search.valid_sequences * inside
                + sum(tuned) * statistics.mean(map(self._encoder, children)),
                config.search.candidates,
                config.search.candidates
                * (config.search.valid_sequences + tuned[0] // _BACKWARD + tuned[1])
                * self._shape.max_length,
            )
        models = 2 + config.retrain.controls
        taught = self._teacher_flops() if self._teacher_params else 0
        step = config.retrain.batch_size * (_BACKWARD * (inside + self._generator()) + taught)
        found["retrain"] = self._training(config.retrain, step, models=models, most=models)
        return found

    def _tuned_sequences(self) -> tuple[int, int]:
        """Forward passes of a child's short fine-tuning, if there is one, and of scoring it; at
        full length, which few inputs have."""
        settings = self._config.search.finetune
        if settings is None:
            return 0, 0
        trained = settings.seeds * settings.steps * settings.batch_size
        return _BACKWARD * trained, settings.seeds * settings.dev_examples

    def _encoder(self, path: Architecture) -> float:
        """A forward pass on one sequence without the head of pre-training."""
        return self._forward(path) - self._head_flops()

    def _step_flops(self, forward: float) -> float:
        """Of a mean step of super-net training: forward and backward of each of its paths, and
        MAGIC-A's anchor, without head, in the share of the steps that are aligned, and its
        comparisons with challengers."""
        train = self._config.train
        each = _BACKWARD * (forward + self._generator()) + self._teacher_flops()
        extra = 0.0
        if train.align is not None and train.align.weight:
            align = train.align
            share = 1 - align.start
            each += share * (forward - self._head_flops())
            extra = share * (1 + align.challengers) * align.sequences / align.interval * forward
        return train.batch_size * self._paths_per_step() * each + extra

    def _forward(self, path: Architecture) -> float:
        """A forward pass on one sequence, the head at the targets alone."""
        whole = self._costs.cost(path).flops
        return whole - self._model.head.flops(self._shape.max_length) + self._head_flops()

    def _teacher_flops(self) -> float:
        """A forward pass of the teacher on one sequence; of another model by its weights alone,
        for each multiplies once per token."""
        if self._config.pretraining.teacher is None:
            return 0
        if self._teacher_params:
            return 2 * self._shape.max_length * self._teacher_params
        return self._forward(self._costs.dearest("num_params"))

    def _head_flops(self) -> int:
        everywhere = self._model.generator is not None
        return self._model.head.flops(self._shape.max_length if everywhere else self._targets)

    def _generator(self) -> int:
        """A forward pass of the generator on one sequence; 0 for masked LM."""
        generator, length = self._model.generator, self._shape.max_length
        if generator is None:
            return 0
        chain: Any = generator.chain.layers
        found = sum(op.flops(length) for candidates in chain for op in candidates.values())
        if generator.projection is not None:
            found += 2 * length * generator.projection.weight.numel()
        return int(found + generator.head.flops(self._targets))

    def _training(
        self, recipe: OptimiserSettings, step: float, *, models: int, most: int | None = None
    ) -> Work:
        tokens = models * recipe.steps * recipe.batch_size * self._shape.max_length
        return self._of(step, models * recipe.steps, tokens, most=most)

    def _of(self, each: float, count: int, tokens: int, *, most: int | None = None) -> Work:
        gpus = min(self._gpus.count, most or self._gpus.count)
        return Work(each, each * count, tokens, gpus, self._gpus.days(each * count, count=gpus))


def _shape(config: Config) -> TextShape:
    vocab_size, pad_id = config.data.vocab_size, 0
    if config.data.tokenizer is not None:
        tokenizer = make_tokenizer(config.data, lambda: iter(()))
        vocab_size, pad_id = len(tokenizer), tokenizer.pad_token_id
    return TextShape.of(
        config.space,
        vocab_size=vocab_size,
        max_length=config.data.sequence_length,
        pad_id=pad_id,
        pretraining=config.pretraining,
    )


def _teacher_params(config: Config) -> int:
    """Of a teacher that is no path of the super-net; 0 where there is none."""
    teacher = config.pretraining.teacher
    if teacher is None or teacher.model == LARGEST:
        return 0
    from orchestrator.hugging_face_models import meta_model

    return count_params(meta_model(teacher.model, "masked_lm"))


def parameters_of(model: SuperNet, path: Architecture) -> list[int]:
    """Parameters of stem, layers and head on a path; the embeddings count as the head's.

    For replaced tokens the generator's are the head's, too.
    """
    embeddings = model.stem.tokens.weight.numel()
    layers = [count_params(model.operator(*pair)) for pair in enumerate(path.operators)]
    on_path = PathParameters(model)
    on_path.begin([path])
    total = sum(parameter.numel() for parameter in on_path.named.values())
    stem = count_params(model.stem) - embeddings
    return [stem, *layers, total - stem - sum(layers)]


def format_plan(found: Plan, config: Config, gpus: Gpus) -> str:
    """Tables for people; the last line is one JSON object."""
    rows = [
        "parameters",
        f"  super-net                 {found.supernet_params:>15,}",
        f"  largest child             {found.largest_child:>15,}",
        f"  smallest child            {found.smallest_child:>15,}",
        f"  hand-made, BERT's pattern {_or_none(found.transformer):>15}",
        f"  mean within the limits    {round(found.child_params):>15,}",
        "",
        f"memory per GPU in GiB: micro batch {found.micro_batch} x {found.sequence_length} tokens, "
        f"{config.train.precision}, {found.gpus} GPUs (train.zero_stage is "
        f"{config.train.zero_stage})",
        "  ZeRO  weights  fp32 master  optimiser  gradients  activations  buffers    peak",
    ]
    for stage, need in found.memory.items():
        rows.append(
            f"  {stage:>4}  {need.weights / _GIB:7.2f}  {need.master / _GIB:11.2f}  "
            f"{need.optimiser / _GIB:9.2f}  {need.gradients / _GIB:9.2f}  "
            f"{need.activations / _GIB:11.2f}  {need.buffers / _GIB:7.2f}  {need.peak / _GIB:6.2f}"
        )
    if "latency_ms" in Limits.parse(config.search.limits).metrics:
        rows += ["", "limits of latency_ms are left out: they need measured operators"]
    rows += [
        "",
        f"time on at most {gpus.count} GPUs of {gpus.peak_tflops:g} TFLOPS at a utilisation of "
        f"{gpus.utilisation:g}, {found.paths_per_step} path(s) a step",
        "           FLOPs per step or child  FLOPs in all      tokens  GPUs     days",
    ]
    for name, work in found.work.items():
        rows.append(
            f"  {name:<8} {work.flops_per_step:>23.3g}  {work.flops:>12.3g}  "
            f"{work.tokens:>10.3g}  {work.gpus:>4}  {work.days:7.3f}"
        )
    return "\n".join([*rows, "", json.dumps(found.to_dict())])


def _or_none(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
