"""The configuration: YAML and `--set` in, one typed and validated value out.

Everything that can be known to be wrong without data or a cluster is refused here.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from orchestrator.credentials import refuse_in_settings
from orchestrator.objectives import Mode
from supernet.errors import InvalidInput
from supernet.settings import (
    DataSettings,
    Fraction,
    LatencySettings,
    OptimiserSettings,
    Positive,
    PretrainingSettings,
    Settings,
    SpaceSettings,
    TrainSettings,
)

_KINDS = {
    "model_type": "hold keys and values",
    "dict_type": "hold keys and values",
    "tuple_type": "be a list",
    "too_short": "hold at least one entry",
    "int_from_float": "be an integer",
}
"""Where pydantic's words are about Python's types."""
QUESTION_TOKENS = 64
"""Of `finetune.max_question_tokens` where nothing else is said: BERT's."""
_MOST_VALUES = 100_000

Pooling = Literal["cls", "mean"]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that reads 1e-3 as a number, as YAML 1.2 does; YAML 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z"),
    list("-+.0123456789"),
)


class ShortFinetuneSettings(Settings):
    """A short fine-tuning of every child of a search, from the weights that it inherits."""

    task: str
    """One of GLUE's, such as sst2."""
    data: str = "hub"
    """The Hugging Face hub, or the folder of the task's original files; the driver reads it."""
    steps: Positive = 100
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    batch_size: Positive = 32
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Fine-tunings of every child; the mean of their scores counts."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of an input; none: `data.sequence_length`."""
    train_examples: Positive = 2000
    """A seeded subset of the train split, the same for every child."""
    dev_examples: Positive = 500
    """A seeded subset of the dev split, on which children are scored."""
    pooling: Pooling = "cls"
    """What the classifier reads: the first token, or the mean of all."""


class SearchSettings(Settings):
    """How children are proposed and scored."""

    searcher: dict[str, Any] = Field(default_factory=lambda: {"name": "evolution"})
    """Which searcher ("random", "evolution", "module:Class") and its settings."""
    candidates: Positive = 300
    """How many distinct children are scored."""
    objectives: Annotated[dict[str, Mode], Field(min_length=1)] = {"val_loss_nats": "min"}
    """Metrics with "min" or "max"; the first one ranks, several have a Pareto front."""
    scorer: dict[str, Any] | None = None
    """Your own score, "module:Class" or "module:function" and its settings; none: the valid loss
    with inherited weights. A super-net is then neither needed nor trained."""
    finetune: ShortFinetuneSettings | None = None
    """Fine-tune every child shortly, for the metric `finetuned_score`: GLUE's figure, 1 at best."""
    max_failed: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The search stops when more than this share of its children, and ten at least, have failed."""
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds for a child's score, after which it becomes a row with an error; none: no limit."""
    limits: str = ""
    """Such as "num_params <= 1.5e6 and flops <= 2e8"; checked before a child is scored."""
    batch_size: Positive | None = None
    """Children per Tune trial; none: as many as keep Tune's cost small and the evaluators busy."""
    in_flight: Positive = 3
    """Tune trials at a time."""
    evaluators: Positive | None = None
    """Evaluator actors; none: one per GPU of the cluster, or per CPU core where it has none."""
    valid_sequences: Positive = 256
    """Sequences of the valid split on which a child is scored."""
    eval_batch_size: Positive = 64
    """Sequences that an evaluator runs at once; fewer where `activation_mib` asks for it."""
    activation_mib: Annotated[float, Field(gt=0)] = 256.0
    """Hidden states that an evaluator holds at most while children share prefixes, in MiB."""


class RetrainSettings(OptimiserSettings):
    """Stand-alone training of the best child, the hand-made baseline and random controls."""

    controls: Annotated[int, Field(ge=0)] = 1
    """Random architectures within the limits, trained by the same recipe."""
    test_sequences: Positive = 1024
    """Sequences of the test split for the final figures."""


class InterferenceSettings(Settings):
    """How `magic-nas interference` measures; changes nothing that a run does."""

    groups: Annotated[int, Field(ge=2, le=10_000)] = 40
    """Groups of children, each on its own training batch; intervals are over groups."""
    children: Annotated[int, Field(ge=1, le=100)] = 11
    """Children per group beside its first; all pairs of a group are compared."""
    checkpoints: tuple[str, ...] = ()
    """Such as [initialisation, step-00000400]; empty: initialisation and all that are kept."""
    batch_size: Positive = 32
    replicates: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Bootstrap draws behind each interval."""


class RankSettings(Settings):
    """How `magic-nas rank` compares the super-net with stand-alone training."""

    children: Annotated[int, Field(ge=10)] = 24
    """How many are drawn; more of them keep the first ones."""
    seeds: Positive = 2
    """How often each child is trained stand-alone; its loss is the mean."""
    steps: Positive | None = None
    """Of stand-alone training; none: as `retrain.steps`. The rest of the recipe is `retrain`'s."""
    within_limits: bool = True
    """Draw from the children within `search.limits` alone."""
    replicates: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Bootstrap draws behind each interval."""


class FinetuneTeacherSettings(Settings):
    """Distillation in fine-tuning (arXiv 1503.02531)."""

    model: str
    """A model that is fine-tuned on the same task: a folder or a name on the hub."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the teacher's soft targets in the loss; the labels have the rest."""
    temperature: Annotated[float, Field(gt=0)] = 2.0


class FinetuneSettings(Settings):
    """How `magic-nas finetune` trains; the defaults are for models of a few million parameters."""

    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        5e-5,
        1e-4,
        3e-4,
    )
    epochs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (3.0,)
    """Every learning rate is tried with every number of epochs."""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    """Of the final figures; their median is reported."""
    selection_seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    """The first so many seeds choose learning rate and epochs, by their median on the dev split."""
    batch_size: Positive = 32
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of an input; longer ones are cut, or go through in strides (SQuAD). None: 128, or as
    many as the model has positions if they are fewer."""
    pooling: Pooling = "cls"
    """What the classifier of an export reads: its first token, or the mean of its real tokens."""
    warmup_fraction: Fraction = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    max_steps: Positive | None = None
    """No fine-tuning takes more steps than this."""
    pretrained: bool = True
    """No: the same architecture from random weights, for comparisons."""
    from_mnli: bool = False
    """RTE, MRPC and STS-B start from the model that was fine-tuned on MNLI in the same call."""
    keep_models: bool = True
    """Keep each task's fine-tuned model of median score."""
    teacher: FinetuneTeacherSettings | None = None
    stride: Positive | None = None
    """Tokens that two windows of a long context share (SQuAD); none: a quarter of max_length."""
    max_question_tokens: Positive = QUESTION_TOKENS
    """Longer questions are cut to this many (SQuAD); the rest of a window is the context's."""
    n_best: Positive = 20
    """Spans kept per question (SQuAD)."""
    max_answer_tokens: Positive = 30
    no_answer_threshold: float | None = None
    """SQuAD 2.0 has no answer where its logits are so far above the best span's; none: the best
    threshold on the dev split."""


class Config(Settings):
    """One run, whole."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    user_code: str | None = None
    """Folder of the modules that "module:Class" names; shipped to every node."""
    trackers: tuple[dict[str, Any], ...] = ()
    """Such as [{name: tensorboard}, {name: wandb, project: nas}]; see `orchestrator.trackers`."""
    data: DataSettings = DataSettings()
    space: SpaceSettings = SpaceSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    train: TrainSettings = TrainSettings()
    search: SearchSettings = SearchSettings()
    retrain: RetrainSettings = RetrainSettings()
    latency: LatencySettings = LatencySettings()
    interference: InterferenceSettings = InterferenceSettings()
    rank: RankSettings = RankSettings()
    finetune: FinetuneSettings = FinetuneSettings()

    def to_yaml(self) -> str:
        """The resolved configuration; `load` reads it back to an equal value."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file (none: the defaults) and apply `a.b=c` overrides.

    Raises:
        InvalidInput: if the file is missing or no YAML, or a key or value breaks a rule.
    """
    values = _read(Path(path)) if path else {}
    for text in overrides:
        _apply(values, text)
    return parse(values)


def override(config: Config, overrides: Iterable[str]) -> Config:
    """The configuration with `a.b=c` overrides.

    Raises:
        InvalidInput: if a key or value breaks a rule.
    """
    values = config.model_dump(mode="json")
    for text in overrides:
        _apply(values, text)
    return parse(values)


def parse(values: Mapping[str, Any]) -> Config:
    """Validate plain values, as YAML gives them.

    Raises:
        InvalidInput: naming every key that breaks a rule, its value, and the nearest known key;
            or a setting that holds a password.
    """
    refuse_in_settings(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        wrong: list[dict[str, Any]] = [dict(item) for item in error.errors()]
        inside = {item["loc"][:-1] for item in wrong}  # a list whose entries are wrong is not short
        lines = [
            _explain(item)
            for item in wrong
            if item["type"] != "too_short" or item["loc"] not in inside
        ]
        raise InvalidInput("configuration: " + "\n  ".join(lines)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidInput(f"cannot read the configuration {path}: {error.strerror}") from None


def read_yaml(data: bytes, name: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        name: of the file, for messages.

    Raises:
        InvalidInput: if it holds something else, or more than a configuration can.
    """
    try:
        text = data.decode()
        loader = _Loader(text)
        node = loader.get_single_node()
        size = _size(node, {}, name)
        if size > _MOST_VALUES:
            raise InvalidInput(
                f"{name} must hold at most {_MOST_VALUES:,} keys and values once its YAML aliases "
                f"are written out, but holds {size:,}: leave out aliases (*name) of what holds "
                f"aliases or itself"
            )
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{name} is not valid YAML: {error}") from None
    except RecursionError:
        raise InvalidInput(f"{name} must hold keys and values, but is nested too deeply") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidInput(f"{name} must hold keys and values, but holds {type(values).__name__}")
    return values


def _size(node: Any, sizes: dict[int, float], name: str) -> float:
    """How many keys and values a YAML node holds, aliases written out; endless in itself.

    Raises:
        InvalidInput: if a key comes twice.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated(node, name)
        inner = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_size(child, sizes, name) for child in inner)
    return sizes[id(node)]


def _refuse_repeated(node: yaml.MappingNode, name: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in seen:
                raise InvalidInput(
                    f"a key must come once, but {name} has {key.value!r} again in line "
                    f"{key.start_mark.line + 1}: remove one of the two"
                )
            seen.add(key.value)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InvalidInput(f"--set takes key=value, such as train.steps=500, but got {override!r}")
    *parents, last = key.split(".")
    for name in parents:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InvalidInput(f"--set {override}: {name!r} holds {inner!r}, not further keys")
        values = inner
    try:
        values[last] = _scalar(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"--set {override}: the value is not valid YAML ({error})") from None


def _scalar(text: str) -> Any:
    value = _Loader(text).get_single_data() if text else ""
    if isinstance(value, str):
        try:
            return float(value)  # nan and inf, which have a message of their own
        except ValueError:
            return value
    return value


def _explain(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{place}'; {hint}"
    rule = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{place}: {rule}"
    if error["type"] in _KINDS:
        return f"{place} must {_KINDS[error['type']]}, but got {error['input']!r}"
    if rule.startswith("Input should "):
        return f"{place} must {rule.removeprefix('Input should ')}, but got {error['input']!r}"
    return f"{place}: {rule[0].lower()}{rule[1:]}, but got {error['input']!r}"


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in path:
        declared = model.model_fields[str(part)].annotation
        (model,) = [
            kind
            for kind in (declared, *get_args(declared))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
    return list(model.model_fields)
