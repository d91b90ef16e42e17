"""The Tune trial of a search. It imports nothing of ours, for its process starts anew at times."""

from typing import Any

import ray
from ray import tune


class BatchTrial(tune.Trainable):  # type: ignore[misc]
    """A Tune trial: one batch of children, scored by the evaluators behind the dispatcher."""

    def setup(self, config: dict[str, Any], dispatcher: Any) -> None:
        """Take the batch id, all that a trial's configuration holds."""
        self._dispatcher = dispatcher
        self._batch_id = config["batch_id"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve another batch in the same process."""
        self._batch_id = new_config["batch_id"]
        return True

    def step(self) -> dict[str, Any]:
        """Wait until the batch is scored and its rows are kept."""
        found = ray.get(self._dispatcher.score_batch.remote(self._batch_id))
        return {**found, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: the batch log and the rows are the state."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""
