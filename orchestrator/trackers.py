"""Where users look while a run goes on: TensorBoard, Weights & Biases, MLflow, optuna-dashboard.

Named under `trackers` in the configuration, none by default. They are fed from rows, so one that
is added to a run that has begun gets its earlier rows too. A crash may repeat the rows of its last
seconds in W&B and MLflow; TensorBoard's files are written anew by each sitting, and Optuna's
storage is looked at first.
"""

import importlib
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.objectives import Objectives
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.errors import InvalidInput
from supernet.space import Architecture

STATE = "trackers.json"
EVERY_S = 5.0
"""Between two looks at new rows."""
KINDS = ("train", "score", "retrain")
_STEPS = {"train": "step", "retrain": "step"}
_NO_METRICS = ("step", "batch_id")

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Shows rows somewhere else."""

    def write(self, kind: str, first: int, rows: Sequence[Row]) -> None:
        """Take rows of a kind; `first` is the number of the first of them."""
        ...

    def close(self) -> None:
        """Write what is held back."""
        ...


class Trackers:
    """The trackers of a run, each given every row once."""

    def __init__(self, run: Run) -> None:
        self._store = run.store
        self._trackers: dict[str, Tracker] = {}
        self._sent: dict[str, dict[str, int]] = {}
        self._looked_at = 0.0
        known = run.store.read_json(STATE) if run.store.exists(STATE) else {}
        for settings in run.config.trackers:
            name = settings["name"]
            self._trackers[name] = _TRACKERS[name](run, **_arguments(settings))
            self._sent[name] = dict(known.get(name, {})) if name in _KEEPS_WHAT_IT_GOT else {}

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers.values():
            tracker.close()

    def catch_up(self) -> None:
        """Give each tracker what the run's earlier stages and sittings have written."""
        for kind in KINDS if self._trackers else ():
            self.show(kind, self._store.rows(kind))

    def due(self) -> bool:
        """Whether it is time to look for new rows."""
        return bool(self._trackers) and time.monotonic() - self._looked_at >= EVERY_S

    def show(self, kind: str, rows: Sequence[Row]) -> None:
        """Give each tracker those of all rows of a kind that it has not got."""
        self._looked_at = time.monotonic()
        for name, tracker in self._trackers.items():
            first = self._sent[name].get(kind, 0)
            if first < len(rows):
                tracker.write(kind, first, rows[first:])
                self._sent[name][kind] = len(rows)
        if self._trackers:
            self._store.write_json(STATE, self._sent)


def check_trackers(settings: Sequence[Mapping[str, Any]]) -> None:
    """Check that trackers are known and installed, and their settings are theirs.

    Raises:
        InvalidInput: if not.
    """
    for tracker in settings:
        name = tracker.get("name")
        if name not in _TRACKERS:
            raise InvalidInput(f"trackers are {', '.join(_TRACKERS)}, but got name={name!r}")
        accepted = _SETTINGS[name]
        for key in _arguments(tracker):
            if key not in accepted:
                raise InvalidInput(
                    f"tracker {name!r} has no setting {key!r}; it has: "
                    f"{', '.join(accepted) or 'none'}"
                )
        library = _LIBRARIES[name]
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise InvalidInput(
                f"tracker {name!r} needs the library {library!r} ({error}): pip install "
                f"'magic-nas[{name}]', or leave the tracker out"
            ) from None


def scalars(kind: str, number: int, row: Row) -> tuple[int, dict[str, float]]:
    """The step of a row and its numbers by name, such as "score/val_loss_nats"."""
    prefix = f"{kind}/{row['name']}" if kind == "retrain" else kind
    values = {
        f"{prefix}/{name}": float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in _NO_METRICS
    }
    return int(row[_STEPS[kind]]) if kind in _STEPS else number, values


class _OnDisk:
    """A file or folder of the run that a library writes by path; on an object store, a copy."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._store, self._name = store, name
        self._copy = None if store.on_disk else tempfile.TemporaryDirectory()
        self.path = Path(self._copy.name, name) if self._copy else store.local_path(name)

    def publish(self) -> None:
        """Upload the copy as it is now."""
        if not self._copy:
            return
        for file in (self.path, *self.path.rglob("*")):
            if file.is_file():
                name = file.relative_to(self.path.parent).as_posix()
                self._store.upload(file, name)

    def close(self) -> None:
        """Upload the copy and remove it from this machine."""
        self.publish()
        if self._copy:
            self._copy.cleanup()


class TensorBoardTracker:
    """Event files under `tensorboard` in the run's folder."""

    def __init__(self, run: Run) -> None:
        from tensorboardX import SummaryWriter

        run.store.delete("tensorboard")
        self._folder = _OnDisk(run.store, "tensorboard")
        self._writer = SummaryWriter(str(self._folder.path))

    def write(self, kind: str, first: int, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        for step, values in _points(kind, first, rows):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._folder.publish()

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()
        self._folder.close()


class WandbTracker:
    """A Weights & Biases run of the run's name; WANDB_MODE and WANDB_API_KEY are W&B's own."""

    def __init__(self, run: Run, *, project: str = "magic-nas", entity: str | None = None) -> None:
        import wandb

        known = run.store.read_json(STATE) if run.store.exists(STATE) else {}
        self._run = wandb.init(
            project=project,
            entity=entity,
            name=run.store.name,
            id=known.get("wandb", {}).get("id"),
            resume="allow",
            dir=str(run.store.local_path()) if run.store.on_disk else None,
            config=run.config.model_dump(mode="json"),
        )
        for kind in KINDS:
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")

    def write(self, kind: str, first: int, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        for step, values in _points(kind, first, rows):
            self._run.log({f"{kind}/step": step, **values})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflowTracker:
    """An MLflow run; MLFLOW_TRACKING_URI is MLflow's own."""

    LARGEST = 1000
    """Values that MLflow takes at once."""

    def __init__(
        self, run: Run, *, tracking_uri: str | None = None, experiment: str = "magic-nas"
    ) -> None:
        from mlflow.entities import ViewType
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri)
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        mine = f"tags.folder = '{run.store.uri}'"
        before = self._client.search_runs([where], mine, ViewType.ACTIVE_ONLY, 1)
        tags = {"folder": run.store.uri, "mlflow.runName": run.store.name}
        made = before[0] if before else self._client.create_run(where, tags=tags)
        self._run_id = made.info.run_id

    def write(self, kind: str, first: int, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, values in _points(kind, first, rows)
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), self.LARGEST):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + self.LARGEST])

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run_id)


class OptunaTracker:
    """A study in an Optuna storage, for optuna-dashboard: a trial for each scored child.

    By default a journal in the run's folder: `optuna-dashboard runs/mine/optuna.journal`.
    """

    def __init__(self, run: Run, *, storage: str | None = None) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        objectives = Objectives.of(run.config.search.objectives)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._journal = _OnDisk(run.store, "optuna.journal")
        journal = JournalFileBackend(str(self._journal.path))
        self._study = optuna.create_study(
            storage=storage or optuna.storages.JournalStorage(journal),
            study_name=run.store.name,
            directions=[f"{mode}imize" for _, mode in objectives.modes],  # type: ignore[misc]
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names(objectives.names)
        self._objectives = objectives
        self._distributions = {
            f"layer_{number:02d}": optuna.distributions.CategoricalDistribution(names)
            for number, names in enumerate(run.space.layers)
        }
        self._there = {trial.user_attrs["architecture"] for trial in self._study.trials}

    def write(self, kind: str, first: int, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        if kind == "score":
            self._study.add_trials(
                [self._trial(row) for row in rows if row["architecture"] not in self._there]
            )
            self._journal.publish()

    def _trial(self, row: Row) -> Any:
        import optuna

        failed = row.get("error") is not None
        operators = Architecture.parse(row["architecture"]).operators
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
            values=None if failed else [row[name] for name in self._objectives.names],
            params=dict(zip(self._distributions, operators, strict=True)),
            distributions=self._distributions,  # type: ignore[arg-type]
            user_attrs={key: value for key, value in row.items() if key not in _NO_METRICS},
        )

    def close(self) -> None:
        """See `Tracker`."""
        self._journal.close()


_TRACKERS: dict[str, Any] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
    "optuna": OptunaTracker,
}
_SETTINGS: dict[str, tuple[str, ...]] = {
    "tensorboard": (),
    "wandb": ("project", "entity"),
    "mlflow": ("tracking_uri", "experiment"),
    "optuna": ("storage",),
}
_LIBRARIES = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "optuna": "optuna",
}
_KEEPS_WHAT_IT_GOT = ("wandb", "mlflow")


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "name"}


def _points(kind: str, first: int, rows: Sequence[Row]) -> Iterator[tuple[int, dict[str, float]]]:
    for number, row in enumerate(rows, first):
        yield scalars(kind, number, row)
