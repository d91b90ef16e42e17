"""One run: its configuration, its folder, and what every stage derives from the two.

Light to make in any process that reaches the run's folder: a driver, a training worker or an
evaluator reads the same files and comes to the same values.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evaluators.latency import LatencyTable
from orchestrator.config import Config, override, parse, read_yaml
from orchestrator.limits import Limits
from orchestrator.node_copy import folder_here
from orchestrator.store import RunStore
from supernet.cost import CostModel
from supernet.data.masking import Batch, TrainBatches, eval_batches
from supernet.data.packed import PackedDataset
from supernet.data.summary import DataSummary
from supernet.errors import InvalidInput
from supernet.manifest import MANIFEST
from supernet.model import TextShape
from supernet.sampler import PathSampler, build_sampler
from supernet.space import Architecture, SearchSpace

CONFIG = "config.yaml"
SUPERNET = "supernet"
LATENCY = "latency.json"


@dataclass(frozen=True)
class Run:
    """A run's folder and configuration; values that cost something are derived once."""

    store: RunStore
    config: Config

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Read a run that exists.

        Raises:
            InvalidInput: if the folder holds no run.
        """
        store = RunStore(folder)
        if not store.exists(CONFIG):
            raise InvalidInput(
                f"a run's folder holds its {CONFIG}, but {store.uri} does not: give the folder "
                f"that 'magic-nas run --out' wrote"
            )
        try:
            return cls(store, parse(read_yaml(store.read_bytes(CONFIG), CONFIG)))
        except (InvalidInput, TypeError) as error:
            raise InvalidInput(
                f"{CONFIG} in the run {store.uri} is damaged or of another version ({error}): put "
                f"back what 'magic-nas run' wrote, or train another run"
            ) from None

    @classmethod
    def open_to_measure(cls, folder: str | Path, section: str, overrides: Sequence[str]) -> "Run":
        """Read a run with settings of one section overridden; they are not kept.

        Raises:
            InvalidInput: if the folder holds no run, or an override is of another section.
        """
        run = cls.open(folder)
        foreign = [text for text in overrides if not text.startswith(f"{section}.")]
        if foreign:
            raise InvalidInput(
                f"a measurement changes nothing but keys of '{section}', but got --set "
                f"{foreign[0]}: the rest is the run's; for other settings train another run"
            )
        return cls(run.store, override(run.config, overrides))

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.config.space.build()

    @cached_property
    def data_folder(self) -> Path:
        """Where the prepared data lies on this machine, checked against its manifest."""
        return folder_here(self.store, "data")

    @property
    def has_data(self) -> bool:
        """Whether the data stage has come to its end."""
        return self.store.exists(f"data/{MANIFEST}")

    @cached_property
    def summary(self) -> DataSummary:
        """What the prepared data is; the data stage must be done."""
        return DataSummary.load(self.data_folder)

    @cached_property
    def shape(self) -> TextShape:
        """The sizes of the network's ends."""
        return TextShape.of(
            self.config.space,
            vocab_size=self.summary.vocab_size,
            max_length=self.summary.sequence_length,
            pad_id=self.summary.pad_id,
            pretraining=self.config.pretraining,
        )

    @cached_property
    def cost_model(self) -> CostModel:
        """Costs of every child."""
        table = self.latency_table
        if table is None:
            return CostModel(self.space, self.shape)
        return CostModel(
            self.space, self.shape, ends_ms=table.ends_ms, operators_ms=table.operators_ms
        )

    @cached_property
    def latency_table(self) -> LatencyTable | None:
        """What `magic-nas latency` measured; None before."""
        if not self.store.exists(LATENCY):
            return None
        try:
            return LatencyTable.from_dict(self.store.read_json(LATENCY))
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidInput(
                f"{LATENCY} in the run {self.store.uri} is damaged ({error}): remove it and run "
                f"'magic-nas latency' again"
            ) from None

    @cached_property
    def limits(self) -> Limits:
        """Limits of the search."""
        return Limits.parse(self.config.search.limits)

    @property
    def needs_latency(self) -> bool:
        """Whether the search limits or optimises latency."""
        return "latency_ms" in self.limits.metrics | set(self.config.search.objectives)

    def sampler(self) -> PathSampler:
        """The path sampler of super-net training."""
        return build_sampler(self.config.train.sampler, self.space, seed=self.config.seed)

    def probe_paths(self) -> list[Architecture]:
        """The fixed paths whose valid loss is measured on the way."""
        rng = random.Random(f"probes:{self.config.seed}")
        return [self.space.sample(rng) for _ in range(self.config.train.probe_paths)]

    def train_batches(self, *, batch_size: int) -> TrainBatches:
        """Batches of the training split."""
        dataset = PackedDataset(self.data_folder, "train")
        return TrainBatches(dataset, self.summary, batch_size=batch_size, seed=self.config.seed)

    def eval_batches(
        self, split: str, *, sequences: int, batch_size: int | None = None
    ) -> list[Batch]:
        """Fixed batches of the valid or test split; size by default `search.eval_batch_size`."""
        return eval_batches(
            PackedDataset(self.data_folder, split),
            self.summary,
            num_sequences=sequences,
            batch_size=batch_size or self.config.search.eval_batch_size,
            seed=self.config.seed,
        )

    def scoring_batches(self) -> list[Batch]:
        """What children are scored on, in batches whose hidden states fit `search.activation_mib`.

        A tree over paths never holds more hidden states than stem and layers give, so the batches
        do not depend on which children are scored together, and neither do the scores.
        """
        return self.eval_batches(
            "valid",
            sequences=self.config.search.valid_sequences,
            batch_size=scoring_batch_size(self.config),
        )


def scoring_batch_size(config: Config) -> int:
    """Sequences that an evaluator runs at once.

    Raises:
        InvalidInput: if the hidden states of a single sequence exceed `search.activation_mib`.
    """
    settings, depth = config.search, len(config.space.build().layers)
    bytes_ = 4 * (depth + 1) * config.data.sequence_length * config.space.widest
    size = int(settings.activation_mib * 2**20 / bytes_)
    if not size:
        raise InvalidInput(
            f"search.activation_mib must hold the hidden states of one sequence, "
            f"{bytes_ / 2**20:.3g} MiB, but got {settings.activation_mib:g}: raise it, or shorten "
            f"data.sequence_length"
        )
    return min(settings.eval_batch_size, size)
