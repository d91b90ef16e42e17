"""The Ray actors of a run: thin shells around plain classes, with names that say what they are."""

from typing import Any

import ray
import torch

from evaluators.evaluator import Evaluator
from orchestrator.runs import Run
from supernet.checkpoint import load_checkpoint, version_of
from supernet.sampler import Paths
from supernet.space import Architecture


def actor_name(run: Run, role: str) -> str:
    """What the dashboard calls it, and how other actors of the run find it."""
    return f"{role}:{run.store.uri}"


def actor_options(run: Run, role: str) -> dict[str, Any]:
    """Name and restarts of an actor that takes no CPU of its own.

    An actor that may start again gets plain values only: handles among its arguments would not
    outlive the driver's memory of them.
    """
    return {"name": actor_name(run, role), "num_cpus": 0, "max_restarts": -1}


class PathSamplerHost:
    """Emits the paths of super-net training; a pure function, so it may start again at will."""

    def __init__(self, run_uri: str) -> None:
        self._sampler = Run.open(run_uri).sampler()

    def plan(self, start: int, count: int) -> list[Paths]:
        """The paths of the optimisation steps `start` … `start + count - 1`."""
        return self._sampler.plan(start, count)


class SuperNetHost:
    """Owns the published weights of a run's super-net, and says how training goes.

    When it dies it starts again and publishes from the checkpoint once more when asked.
    """

    def __init__(self, run_uri: str) -> None:
        self._run = Run.open(run_uri)
        self._weights: dict[str, ray.ObjectRef] = {}
        self._progress: dict[str, Any] = {}
        self._failure: tuple[str, str] | None = None

    def report(self, row: dict[str, Any]) -> None:
        """Take the training log's newest interval."""
        self._progress = row

    def progress(self) -> dict[str, Any]:
        """The training log's newest interval; empty before the first."""
        return self._progress

    def fail(self, kind: str, message: str) -> None:
        """Take a worker's error that another attempt would not mend."""
        self._failure = (kind, message)

    def failure(self) -> tuple[str, str] | None:
        """That error, if there was one."""
        return self._failure

    def publish(self, checkpoint: str) -> str:
        """Put a checkpoint's weights into the object store, once; returns their version."""
        version = version_of(self._run.store, checkpoint)
        if version not in self._weights:
            loaded = load_checkpoint(self._run.store, checkpoint, optimizer=False)
            arrays = {name: tensor.numpy() for name, tensor in loaded.weights.items()}
            self._weights = {version: ray.put(arrays)}
        return version

    def weights(self, checkpoint: str) -> list[ray.ObjectRef]:
        """A reference, wrapped so that Ray does not fetch it, to the published weights."""
        return [self._weights[self.publish(checkpoint)]]


class EvaluatorHost:
    """Maps the published weights read-only and scores children on the fixed valid batches."""

    def __init__(self, run_uri: str, checkpoint: str) -> None:
        torch.set_num_threads(1)
        run = Run.open(run_uri)
        supernet = ray.get_actor(actor_name(run, "supernet"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        (reference,) = ray.get(supernet.weights.remote(checkpoint))
        self._evaluator = Evaluator(
            run.space,
            run.shape,
            ray.get(reference),
            run.eval_batches("valid", sequences=run.config.search.valid_sequences),
            version=version_of(run.store, checkpoint),
            device=device,
        )

    def ready(self) -> bool:
        """Answers once the weights are mapped."""
        return True

    def score(self, architecture: str) -> dict[str, Any]:
        """The row of one child."""
        return self._evaluator.score(Architecture.parse(architecture)).to_row()


PathSamplerActor = ray.remote(PathSamplerHost)
SuperNetActor = ray.remote(SuperNetHost)
EvaluatorActor = ray.remote(EvaluatorHost)
