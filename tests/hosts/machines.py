"""Hosts made of Linux namespaces: each with an address, processes and temporary files of its own.

A group of hosts lies on a bridge of its own, 10.78.<group>.0/24, so that several groups work side
by side. Hosts see this machine's files, but /tmp, /dev/shm and /run are their own. Needs root, `ip`
(iproute2), `unshare` and `nsenter` (util-linux). No sshd: commands enter a host by `nsenter`.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

STATE = Path("/var/tmp/magic-nas-hosts")
"""A folder per group; whoever holds the lock on its file `lock` has the group."""
GROUPS = range(1, 200)
OWN = ("/tmp/", "/dev/shm/", "/run/")
"""What each host has for itself."""


def why_not() -> str | None:
    """Why no hosts can be made here; None where they can."""
    if os.geteuid() != 0:
        return "hosts in network namespaces need root"
    hidden = [path for path in (os.getcwd(), sys.prefix) if path.startswith(OWN)]
    if hidden:
        return f"hosts see nothing of {hidden[0]}: move the checkout out of {', '.join(OWN)}"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "setpriv") if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} not found: install iproute2 and util-linux"
    probe = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"])
    return "this machine lets nobody make namespaces" if probe.returncode else None


class Host:
    """One host of a group; made by `Group.start`."""

    def __init__(self, group: int, number: int, mounts: Mapping[str, str]) -> None:
        self.name = f"host{number}"
        self.address = f"10.78.{group}.{10 + number}"
        self._space, self._link = f"mn{group}h{number}", f"mn{group}v{number}"
        self._mac = f"02:00:00:00:{group:02x}:{number:02x}"
        self._bridge = f"mn{group}"
        self._mounts = mounts
        self._holder: subprocess.Popen[bytes] | None = None
        self.pid = 0

    @property
    def powered(self) -> bool:
        """Whether it has power."""
        return self._holder is not None

    def power_on(self) -> None:
        """Start empty, at the same address as ever."""
        _ip("netns", "add", self._space)
        inner = ["name", "eth0", "address", self._mac, "netns", self._space]
        _ip("link", "add", self._link, "type", "veth", "peer", *inner)
        _ip("link", "set", self._link, "master", self._bridge, "up")
        inside = ["-n", self._space]
        _ip(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip(*inside, "link", "set", device, "up")
        _ip(*inside, "route", "add", "default", "dev", "eth0")
        mounts = [f"mount --bind '{source}' '{over}'" for over, source in self._mounts.items()]
        first = "; ".join(
            [
                "set -e",
                f"hostname {self.name}",
                *(f"mount -t tmpfs tmpfs {own}" for own in OWN),
                "chmod 1777 /tmp",
                "touch /run/resolv.conf; mount --bind /run/resolv.conf /etc/resolv.conf",
                *mounts,
                "touch /run/up",
                "set +e",
                "sleep infinity & wait",  # the shell takes leave of orphans, as an init does
            ]
        )
        apart = ["--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._space]
            + ["unshare", *apart, "bash", "-c", first],
            stdin=subprocess.DEVNULL,
        )
        self.pid = _first_child(self._holder)
        while self.run(["test", "-e", "/run/up"]) != 0:
            assert self._holder.poll() is None, f"{self.name} did not start"
            time.sleep(0.05)

    def lose_power(self) -> None:
        """Be gone at once: the link first, so that nobody hears the processes end."""
        if self._holder is None:
            return
        self.cut()
        self._holder.kill()  # and, with `--kill-child`, all that runs in the host
        self._holder.wait()
        while _pid_space(self.pid):
            time.sleep(0.01)
        self._holder = None
        _ip("netns", "del", self._space)
        _ip("link", "del", self._link, check=False)  # goes with its other end, a moment later

    def cut(self) -> None:
        """Take the network away."""
        _ip("link", "set", self._link, "down")

    def heal(self) -> None:
        """Bring the network back."""
        _ip("link", "set", self._link, "up")

    def popen(
        self, command: Sequence[str], *, log: IO[str] | int, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a command in the host, in this process's folder and environment."""
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        return subprocess.Popen(
            ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
            + ["env", "-C", os.getcwd(), *variables, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        log: IO[str] | int = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> int:
        """Run a command in the host; returns its exit code."""
        process = self.popen(command, log=log, env=env)
        try:
            return process.wait(timeout_s)
        finally:
            kill(process)

    def processes(self) -> dict[int, str]:
        """The command lines of its processes by their numbers on this machine."""
        space, found = _pid_space(self.pid), {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _pid_space(int(entry.name)) == space:
                try:
                    text = (entry / "cmdline").read_bytes()
                except OSError:  # gone meanwhile
                    continue
                found[int(entry.name)] = text.replace(b"\0", b" ").decode(errors="replace").strip()
        return found


class Group:
    """Hosts on one network; all is undone at the end, and what crashes left at the next start.

    Args:
        storage_mib: size of the folder that all of them share, a disk in memory.
    """

    def __init__(self, *, storage_mib: int = 512) -> None:
        STATE.mkdir(exist_ok=True)
        _sweep()
        self._number, self._lock = _take()
        self.folder = STATE / str(self._number)
        self.storage = self.folder / "storage"
        self.storage.mkdir()
        self.hosts: dict[int, Host] = {}
        size = f"size={storage_mib}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.storage], check=True)
        _ip("link", "add", f"mn{self._number}", "type", "bridge")
        _ip("link", "set", f"mn{self._number}", "up")

    def start(self, number: int, *, mounts: Mapping[str, str] | None = None) -> Host:
        """Host `number`, from 1 on, powered on.

        Args:
            mounts: files of this machine that lie over others in this host alone.
        """
        host = self.hosts[number] = Host(self._number, number, mounts or {})
        host.power_on()
        return host

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.lose_power()
        _undo(self._number)
        self._lock.close()


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a command that runs in a host; not `nsenter`, which would leave it alone."""
    if process.poll() is None:
        for child in _children(process.pid) or [process.pid]:
            os.kill(child, signal.SIGKILL)
        process.wait()


def _take() -> tuple[int, IO[str]]:
    for number in GROUPS:
        (STATE / str(number)).mkdir(exist_ok=True)
        lock = open(STATE / str(number) / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _undo(number)
        return number, lock
    raise RuntimeError(f"all {len(GROUPS)} groups of hosts are in use")


def _sweep() -> None:
    """Undo the groups that nobody holds."""
    for folder in STATE.iterdir():
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _undo(int(folder.name))


def _undo(group: int) -> None:
    """Remove every trace of a group but its lock."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        space = line.split()[0]
        if space.startswith(f"mn{group}h"):
            users = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
            for pid in users.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", space, check=False)
    for link in Path("/sys/class/net").glob(f"mn{group}v*"):  # else gone a moment later
        _ip("link", "del", link.name, check=False)
    _ip("link", "del", f"mn{group}", check=False)
    storage = STATE / str(group) / "storage"
    subprocess.run(["umount", "--lazy", storage], stderr=subprocess.DEVNULL)
    for path in storage.parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _first_child(process: "subprocess.Popen[bytes]") -> int:
    """`unshare`'s child, the first process of the host."""
    while not (found := _children(process.pid)):
        assert process.poll() is None, "a host did not start"
        time.sleep(0.01)
    return found[0]


def _pid_space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
