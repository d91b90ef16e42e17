"""What a stage says that Ray gave up for want of workers, in place of Ray's traceback.

Errors of code, ours or a user's, keep theirs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError, RayTaskError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from supernet.errors import WorkersLost

LOSSES_OF_TRAIN = (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)


@contextmanager
def losses_told(stage: str) -> Iterator[None]:
    """Turn the loss of workers, or of what they need, into an error of ours.

    Raises:
        WorkersLost: with the last line of Ray's reason.
    """
    try:
        yield
    except (RayError, TrainingFailedError) as error:
        losses = _causes(error)
        if not all(_is_loss(loss) for loss in losses):
            raise
        lines = str(losses[0]).strip().splitlines() or [type(losses[0]).__name__]
        raise WorkersLost(
            f"{stage} needs its workers, but they were lost too often or could not start "
            f"({lines[0]}): see what 'magic-nas doctor' says of the nodes and the logs in Ray's "
            f"dashboard; what was done is kept, and the same command goes on"
        ) from error


def _causes(error: BaseException) -> list[BaseException]:
    if isinstance(error, WorkerGroupError):
        return list(error.worker_failures.values()) or [error]
    if isinstance(error, ControllerError):
        return [error.controller_failure]
    return [error]


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, (RayError, *LOSSES_OF_TRAIN)) and not isinstance(error, RayTaskError)
