"""Connecting to Ray: a running cluster by its address, or a local one for the length of a run."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import ray
from ray._private import services
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError
from ray.job_config import JobConfig

from orchestrator.capacity import Cluster
from orchestrator.on_ray.nodes import autoscaler, nodes_now
from supernet.errors import InvalidInput

__all__ = ["Cluster", "check_head", "connect"]

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
ANSWER_S = 5.0
"""How long a head may take to answer; Ray itself would try for many minutes."""
TOKEN_PLACES = "~/.ray/auth_token or RAY_AUTH_TOKEN"


@contextmanager
def connect(
    address: str | None, *, user_code: str | None, name: str = "magic-nas"
) -> Iterator[Cluster]:
    """Connect to the cluster at `address`, or start a local one; leave it again at the end.

    Args:
        name: of the job, for the dashboard.

    Raises:
        InvalidInput: if no cluster answers at the address, or it refuses the token.
    """
    if address:
        check_head(address)
    os.environ.update(WORKER_ENV | DRIVER_ENV)
    runtime_env: dict[str, Any] = {"env_vars": WORKER_ENV}
    if user_code:
        runtime_env["working_dir"] = user_code
    logging.getLogger("ray").setLevel(logging.ERROR)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",  # none would join any cluster that runs on this machine
            namespace="magic-nas",
            job_config=JobConfig(metadata={"job_name": name}),
            runtime_env=runtime_env,
            log_to_driver=True,
            logging_level=logging.ERROR,
            **({} if address else {"include_dashboard": True}),
        )
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        where = f"at {address}" if address else "on this machine"
        raise InvalidInput(f"cannot reach or start a Ray cluster {where}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put one there that aborts
    try:
        yield Cluster(nodes_now(), autoscaler() if address else None)
    finally:
        ray.shutdown()


def check_head(address: str) -> None:
    """Ask the cluster's head for its id, once, with the token that Ray would send.

    Raises:
        InvalidInput: if the address is none, nothing answers there, or the token is refused.
    """
    head = _head_of(address)
    if is_token_auth_enabled() and not _has_token():
        raise InvalidInput(
            f"RAY_AUTH_MODE=token needs the token of the cluster at {address}, but none was found: "
            f"copy the head's {TOKEN_PLACES} to here"
        )
    with init_grpc_channel(head, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            raise InvalidInput(_why_refused(address, error)) from None


def _has_token() -> bool:
    """Whether Ray finds a token here, to be sent or not."""
    try:
        return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:
        return False


def _head_of(address: str) -> str:
    """The head's host and port."""
    if "://" in address:
        raise InvalidInput(
            f"--address must be host:port of a cluster's head, or 'auto' on one of its nodes, but "
            f"got {address!r}: a run's driver is part of the cluster, which Ray's client protocol "
            f"and job API are not; start it on a node with 'ray submit' or 'ray job submit'"
        )
    if address == "auto":
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init does
    try:
        head = services.canonicalize_bootstrap_address(address)
    except (ValueError, OSError) as error:
        raise InvalidInput(
            f"--address must be host:port, such as 10.0.0.1:6379, or 'auto', but got {address!r} "
            f"({error}): give the address that 'ray start --head' printed"
        ) from None
    if head is None:
        raise InvalidInput(
            f"--address {address!r} needs a Ray cluster that runs on this machine, but there is "
            f"none: start one with 'ray start --head', give its host:port, or leave out --address"
        )
    return str(head)


def _why_refused(address: str, error: Any) -> str:
    code = error.code()
    if code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        silent = code is grpc.StatusCode.DEADLINE_EXCEEDED
        what = f"nothing did within {ANSWER_S:.0f} s" if silent else _first_line(error.details())
        return (
            f"a Ray cluster's head must answer at --address {address}, but {what}: start one with "
            f"'ray start --head' there, mend the address or the network in between, or leave out "
            f"--address for a local cluster"
        )
    if is_token_auth_enabled():
        return (
            f"the cluster at {address} lets nobody in without its token, and refused the one found "
            f"here: put the head's into {TOKEN_PLACES} (the latter counts first)"
        )
    if _has_token():
        return (
            f"the cluster at {address} lets nobody in without its token, and none was sent, for "
            f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE')!r}: set RAY_AUTH_MODE=token"
        )
    return (
        f"the cluster at {address} lets nobody in without its token, and none was found here: copy "
        f"the head's {TOKEN_PLACES} to here and set RAY_AUTH_MODE=token"
    )


def _first_line(text: str | None) -> str:
    return (text or "it refused").splitlines()[0].rstrip(".")
