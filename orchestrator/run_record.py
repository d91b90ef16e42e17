"""What a run's folder holds at this moment, read once for the report; unfinished stages are empty.

Rows of a step may repeat after a worker was started again from a checkpoint: the last one counts.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.config import Config, parse, read_yaml
from orchestrator.finetuning.summary import summary_of
from orchestrator.leaderboard import build_leaderboard
from orchestrator.limits import Limits
from orchestrator.objectives import DEFAULT_OBJECTIVES, Objectives
from orchestrator.store import RunStore
from supernet.errors import InvalidInput

STAGES = ("data", "train", "search", "retrain", "export", "report")

_STEP_KEYS = {
    "train": ("step",),
    "probe": ("architecture", "step"),
    "anchor": ("step",),
    "retrain": ("name", "step"),
}
_NUMBERS = {
    "train": ("loss_nats", "alignment_loss", "learning_rate", "tokens_per_s"),
    "probe": ("val_loss_nats",),
    "anchor": ("val_loss_nats", "previous_loss_nats"),
    "retrain": ("loss_nats", "val_loss_nats"),
}


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder shows it; `config` is None and mappings are empty where not written."""

    name: str
    config: Config | None
    run: Mapping[str, Any]
    data: Mapping[str, Any]
    train: pd.DataFrame
    probe: pd.DataFrame
    anchor: pd.DataFrame
    retrain: pd.DataFrame
    scores: Sequence[Mapping[str, Any]]
    leaderboard: pd.DataFrame
    interference: Mapping[str, Any]
    ranking: Mapping[str, Any]
    ranked: pd.DataFrame
    latency: Mapping[str, Any]
    finetuned: Mapping[str, Any]

    @property
    def objectives(self) -> Objectives:
        """What the search optimises."""
        return _objectives(self.config)

    @property
    def front_objectives(self) -> Objectives:
        """Those of the Pareto front; a search for one metric has one with the parameters."""
        if len(self.objectives.modes) > 1:
            return self.objectives
        return Objectives((*self.objectives.modes, ("num_params", "min")))

    @property
    def has_front(self) -> bool:
        """Whether a child has all that the front wants."""
        names = self.front_objectives.names
        board = self.leaderboard
        return set(names) <= set(board) and bool(board[names].notna().all(axis=1).any())

    @property
    def limits(self) -> Limits:
        """Of the search."""
        return Limits.parse(self.config.search.limits if self.config else "")

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models trained stand-alone: best, baseline, then the controls by name."""
        order = {"best": 0, "baseline": 1}
        models: list[dict[str, Any]] = list(self.run.get("models") or [])
        return sorted(models, key=lambda model: (order.get(model["name"], 2), model["name"]))

    def model(self, name: str) -> dict[str, Any] | None:
        """One of `models` by its name; None where it has not been trained."""
        return next((model for model in self.models if model["name"] == name), None)

    @property
    def replaced_tokens(self) -> bool:
        """Whether children learn to tell replaced tokens, which no unigrams compare with."""
        return bool(self.config and self.config.pretraining.objective == "replaced_tokens")

    def unigram_nats(self, split: str) -> float | None:
        """Cross-entropy of the training unigrams on a split's targets, where it is known.

        None where children learn something else than these targets.
        """
        if self.replaced_tokens:
            return None
        for source in (self.run, self.data):
            value = (source.get("unigram_nats") or {}).get(split)
            if value is not None:
                return float(value)
        return None


def read_run(store: RunStore) -> RunRecord:
    """Read a run's folder.

    Raises:
        InvalidInput: if the folder is not there, or a file in it is damaged.
    """
    if not store.exists():
        raise InvalidInput(f"a report needs a run's folder, but there is none at {store.uri}")
    run = _json(store, "run.json")
    scores, config = store.rows("score"), _config(store)
    return RunRecord(
        name=str(run.get("name") or store.name),
        config=config,
        run=run,
        data=_json(store, "data/summary.json"),
        train=last_of_each_step("train", _child_losses(store.rows("train"))),
        probe=last_of_each_step("probe", store.rows("probe")),
        anchor=last_of_each_step("anchor", store.rows("anchor"), text=("architecture",)),
        retrain=last_of_each_step("retrain", _child_losses(store.rows("retrain"))),
        scores=scores,
        leaderboard=build_leaderboard(scores, _objectives(config)),
        interference=_json(store, "interference.json"),
        ranking=_json(store, "ranking.json"),
        ranked=_frame(store, "ranking.parquet"),
        latency=_json(store, "latency.json"),
        finetuned=summary_of(store),
    )


def last_of_each_step(
    kind: str, rows: Sequence[Mapping[str, Any]], *, text: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Rows of a kind as a frame, in the order of steps, without those that a restart repeated."""
    keys, numbers = list(_STEP_KEYS[kind]), list(_NUMBERS[kind])
    frame = pd.DataFrame(list(rows)).reindex(columns=[*keys, *text, *numbers])
    frame[numbers] = frame[numbers].astype("float64")
    return frame.drop_duplicates(keys, keep="last").sort_values(keys, ignore_index=True)


def _child_losses(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Training rows whose loss is the child's own, as in valid losses, without a generator's."""
    child = "discriminator_loss_nats"
    return [{**row, "loss_nats": row[child]} if child in row else row for row in rows]


def _config(store: RunStore) -> Config | None:
    if not store.exists("config.yaml"):
        return None
    name = f"config.yaml in the run {store.uri}"
    return parse(read_yaml(store.read_bytes("config.yaml"), name))


def _objectives(config: Config | None) -> Objectives:
    return Objectives.of(config.search.objectives) if config else DEFAULT_OBJECTIVES


def _frame(store: RunStore, name: str) -> pd.DataFrame:
    if not store.exists(name):
        return pd.DataFrame()
    try:
        return pd.read_parquet(io.BytesIO(store.read_bytes(name)))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{name} in the run {store.uri} is no Parquet file: {error}") from error


def _json(store: RunStore, name: str) -> Mapping[str, Any]:
    if not store.exists(name):
        return {}
    value = store.read_json(name)
    if not isinstance(value, dict):
        raise InvalidInput(f"{name} in the run {store.uri} must hold keys and values")
    return value
