"""Lost workers end a stage with one sentence; errors of code keep their traceback."""

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from orchestrator.on_ray.losses import losses_told
from supernet.errors import WorkersLost

TASK_ERROR = RayTaskError("forward", "Traceback …", ValueError("no such shape"))


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        OutOfMemoryError("the node was short of memory"),
        WorkerGroupError("lost", {0: ActorDiedError(), 1: ActorDiedError()}),
        WorkerGroupError("lost", {0: WorkerHealthCheckFailedError("lost", ActorDiedError())}),
        ControllerError(ActorDiedError()),
    ],
)
def test_lost_workers_are_told_in_a_sentence(error: Exception) -> None:
    said = r"training needs its workers.*the same command goes on"
    with pytest.raises(WorkersLost, match=said), losses_told("training"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        TASK_ERROR,
        WorkerGroupError("failed", {0: ActorDiedError(), 1: TASK_ERROR}),
        WorkerGroupError("failed", {1: ValueError("no such shape")}),
        ControllerError(ValueError("a fault of ours")),
        TrainingFailedError("unknown"),
    ],
)
def test_an_error_of_code_is_left_alone(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, losses_told("training"):
        raise error
    assert raised.value is error
