"""The Ray actors of a run: thin shells around plain classes, with names that say what they are.

What is heavy is imported where an actor is made, for whoever holds a handle imports this module.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.log_lines import log_from_worker
from orchestrator.on_ray.names import actor_name

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData
    from evaluators.evaluator import Evaluator
    from evaluators.finetuned_score import FinetunedScorer
    from evaluators.own_scorer import OwnScore, OwnScorer
    from supernet.sampler import Paths


class PathSamplerHost:
    """Emits the paths of super-net training; a pure function, so it may start again at will."""

    def __init__(self, run_uri: str) -> None:
        from orchestrator.runs import Run

        self._sampler = Run.open(run_uri).sampler()

    def plan(self, start: int, count: int) -> "list[Paths]":
        """The paths of the optimisation steps `start` … `start + count - 1`."""
        return self._sampler.plan(start, count)


class SuperNetHost:
    """Owns the published weights of a run's super-net, and says how training goes.

    When it dies it starts again and publishes from the checkpoint once more when asked.
    """

    def __init__(self, run_uri: str) -> None:
        from orchestrator.runs import Run

        self._run = Run.open(run_uri)
        self._weights: dict[str, ray.ObjectRef] = {}
        self._progress: dict[str, Any] = {}
        self._failure: tuple[str, str] | None = None
        self._training_nodes: list[str] = []

    def placed(self, nodes: list[str]) -> None:
        """Take the nodes on which training workers are, by rank; none: they are stopped."""
        self._training_nodes = nodes

    def training_nodes(self) -> list[str]:
        """Those nodes."""
        return self._training_nodes

    def report(self, row: dict[str, Any]) -> None:
        """Take the training log's newest interval."""
        self._progress = row

    def progress(self) -> dict[str, Any]:
        """The training log's newest interval; empty before the first."""
        return self._progress

    def fail(self, kind: str, message: str) -> None:
        """Take a worker's error that another attempt would not mend; the first one is kept."""
        self._failure = self._failure or (kind, message)

    def failure(self) -> tuple[str, str] | None:
        """That error, if there was one."""
        return self._failure

    def publish(self, checkpoint: str) -> str:
        """Put a checkpoint's weights into the object store, once; returns their version."""
        from supernet.checkpoint import load_checkpoint, version_of

        version = version_of(self._run.store, checkpoint)
        if version not in self._weights:
            loaded = load_checkpoint(self._run.store, checkpoint, optimizer=False)
            arrays = {name: tensor.numpy() for name, tensor in loaded.weights.items()}
            self._weights = {version: ray.put(arrays)}
        return version

    def weights(self, checkpoint: str) -> list[ray.ObjectRef]:
        """A reference, wrapped so that Ray does not fetch it, to the published weights."""
        version = self.publish(checkpoint)
        return [self._weights[version]]


class EvaluatorHost:
    """Scores children: on the fixed valid batches with the published weights, mapped read-only, or
    by a user's function.
    """

    def __init__(
        self,
        run_uri: str,
        checkpoint: str,
        own: "OwnScore | None" = None,
        examples: "TaskData | None" = None,
    ) -> None:
        import torch

        from orchestrator.finetuning.short import with_finetuning
        from orchestrator.runs import Run
        from orchestrator.scoring import own_scorer

        torch.set_num_threads(1)
        self._run = Run.open(run_uri)
        log_from_worker(self._run.store.name, "search")
        self._scorer: OwnScorer | Evaluator | FinetunedScorer = own_scorer(
            self._run, own
        ) or with_finetuning(self._run, self._inherited(checkpoint), examples)

    def _inherited(self, checkpoint: str) -> "Evaluator":
        import torch

        from evaluators.evaluator import Evaluator

        weights, version = self._mapped(checkpoint)
        return Evaluator(
            self._run.space,
            self._run.shape,
            weights,
            self._run.scoring_batches(),
            version=version,
            costs=self._run.cost_model,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )

    def _mapped(self, checkpoint: str) -> tuple[Any, str]:
        """The published weights, read-only out of the object store, and their version."""
        from supernet.checkpoint import version_of

        supernet = ray.get_actor(actor_name(self._run, "supernet"))
        (reference,) = ray.get(supernet.weights.remote(checkpoint))
        return ray.get(reference), version_of(self._run.store, checkpoint)

    def load(self, checkpoint: str) -> str:
        """Score with another checkpoint's weights from now on; returns their version.

        Weights that no evaluator maps any more leave the object store.
        """
        from evaluators.own_scorer import OwnScorer

        assert not isinstance(self._scorer, OwnScorer), "a user's function scores without weights"
        self._scorer.load(*self._mapped(checkpoint))
        return self._scorer.version

    def ready(self) -> str:
        """Answers once the weights are mapped: with the node that it is on."""
        return str(ray.get_runtime_context().get_node_id())

    def score_together(self, architectures: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of some children."""
        from supernet.space import Architecture

        return self._scorer.rows([Architecture.parse(text) for text in architectures])

    def peak_activation_mib(self) -> float:
        """Most memory that hidden states took at once, in MiB."""
        return self._scorer.peak_activation_mib


PathSamplerActor = ray.remote(PathSamplerHost)
SuperNetActor = ray.remote(SuperNetHost)
EvaluatorActor = ray.remote(EvaluatorHost)
