"""Connecting to Ray: a running cluster by its address, or a local one for the length of a run."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from supernet.errors import InvalidInput

DRIVER_ENV = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows are the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is for the driver: Tune would end as if done
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_COLOR_PREFIX": "0",  # escape sequences have no place in a log
}
WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_V2_ENABLED": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
CONNECT_S = 10.0


@dataclass(frozen=True)
class Cluster:
    """What a cluster has in all, and the driver's connection to it."""

    num_cpus: int
    num_gpus: int

    @property
    def use_gpu(self) -> bool:
        """Whether work goes to GPUs: where there is one."""
        return self.num_gpus > 0

    @property
    def slots(self) -> int:
        """How many processes work at a time: one per GPU, or per CPU core where there is none."""
        return self.num_gpus or self.num_cpus

    @property
    def slot_resources(self) -> dict[str, float]:
        """What one such process takes."""
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": 1}

    def workers(self, wanted: int | None, *, setting: str) -> int:
        """How many processes to start: as many as wanted, or one per slot.

        Raises:
            InvalidInput: if the cluster has fewer.
        """
        if wanted is None:
            return self.slots
        if wanted > self.slots:
            kind = "GPUs" if self.use_gpu else "CPU cores"
            raise InvalidInput(
                f"{setting} must be at most {self.slots}, for the cluster has {self.num_cpus} CPU "
                f"cores and {self.num_gpus} GPUs and one worker takes one of its {kind}, but got "
                f"{wanted}: lower it, leave it out, or add nodes"
            )
        return wanted


@contextmanager
def connect(address: str | None, *, user_code: str | None) -> Iterator[Cluster]:
    """Connect to the cluster at `address`, or start a local one; leave it again at the end.

    Raises:
        InvalidInput: if no cluster answers at the address.
    """
    if address:
        _check_answers(address)
    os.environ.update(WORKER_ENV | DRIVER_ENV)
    runtime_env: dict[str, Any] = {"env_vars": WORKER_ENV}
    if user_code:
        runtime_env["working_dir"] = user_code
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            address=address or "local",  # none would join any cluster that runs on this machine
            namespace="magic-nas",
            runtime_env=runtime_env,
            log_to_driver=True,
            logging_level=logging.ERROR,
            **({} if address else {"include_dashboard": True}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "on this machine"
        raise InvalidInput(f"cannot reach or start a Ray cluster {where}: {error}") from error
    try:
        resources = ray.cluster_resources()
        yield Cluster(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would try an address where nothing listens for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise InvalidInput(
            f"cannot reach a Ray cluster at {address}: {error}; start one with 'ray start --head' "
            f"there, mend the address, or leave out --address for a local one"
        ) from None
