"""A Ray cluster on hosts of `machines`, with a token, and commands of ours on its first host."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.hosts.machines import Group, Host

REPOSITORY = Path(__file__).parents[2]
PORT, DASHBOARD_PORT, CLIENT_PORT = 6379, 8265, 10001
TOKEN = "a" * 64
ENV = {
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_niceness": "0",  # others on this machine do not come first
}
OBJECT_STORE_BYTES = 100 * 2**20
START_S = 400


class RayHosts:
    """Host 1 is the head.

    Args:
        cpus: of each host; what they are given, not what this machine has.
        log: takes what `ray start` says.
        env: of the nodes, and so of all actors.
    """

    def __init__(
        self,
        group: Group,
        cpus: Sequence[int],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.group, self._cpus, self._log, self._env = group, cpus, log, env or {}

    @property
    def head(self) -> Host:
        """The host of the head node and of the drivers."""
        return self.group.hosts[1]

    @property
    def address(self) -> str:
        """Where the cluster answers."""
        return f"{self.head.address}:{PORT}"

    def start(self, numbers: Sequence[int], *, dashboard: bool = False) -> None:
        """Power these hosts on, empty, and start their nodes, all at once.

        One whose node does not come up, as on a machine that is too busy, begins again.
        """
        begun = {number: self._start_node(number, dashboard) for number in numbers}
        deadline = time.monotonic() + START_S
        while begun:
            number, node = next(iter(begun.items()))
            if node.wait(START_S) == 0:
                del begun[number]
                continue
            assert time.monotonic() < deadline, self._log.read_text()
            self.group.hosts[number].lose_power()
            begun[number] = self._start_node(number, dashboard)

    def _start_node(self, number: int, dashboard: bool) -> "subprocess.Popen[bytes]":
        if number not in self.group.hosts:
            self.group.start(number)
        elif not self.group.hosts[number].powered:
            self.group.hosts[number].power_on()
        host = self.group.hosts[number]
        options = ["--address", self.address]
        if number == 1:
            options = ["--head", "--port", str(PORT), f"--include-dashboard={dashboard}"]
        if number == 1 and dashboard:
            options += ["--dashboard-host", "0.0.0.0", "--dashboard-port", str(DASHBOARD_PORT)]
            options += ["--ray-client-server-port", str(CLIENT_PORT)]
        options += ["--node-ip-address", host.address, "--num-cpus", str(self._cpus[number - 1])]
        options += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats"]
        with self._log.open("a") as log:
            return host.popen([ray_program(), "start", *options], log=log, env={**ENV, **self._env})

    def stop(self) -> None:
        """Take the power from every host."""
        for host in self.group.hosts.values():
            host.lose_power()

    def magic_nas(
        self,
        command: str,
        *arguments: object,
        log: IO[str],
        host: Host | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start `magic-nas` on the head, or on another host."""
        words = ["-m", "orchestrator.cli", command, "--address", self.address]
        return (host or self.head).popen(
            [sys.executable, "-u", *words, *map(str, arguments)],
            log=log,
            env={**ENV, **(env or {})},
        )


def ray_program() -> str:
    """Ray's command line beside this Python."""
    return str(Path(sys.executable).with_name("ray"))


def ray_processes(host: Host, title: str) -> list[int]:
    """The processes of actors whose titles begin with this."""
    found = host.processes().items()
    return [pid for pid, text in found if text.startswith(f"ray::{title}")]
