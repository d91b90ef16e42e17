"""What may fail on a cluster of three hosts, what is promised of it, and how it is tried."""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hosts.machines import Group, kill
from tests.hosts.ray_hosts import RayHosts, ray_processes
from tests.hosts.workload import (
    CANDIDATES,
    CHECKPOINT_STEPS,
    LONG_CANDIDATES,
    LONG_STEPS,
    SLOW_S,
    STEPS,
    Notes,
    Prepared,
    Result,
)

CPUS = (1, 1, 1)
BACK_AFTER_S, CUT_S = 10.0, 30.0
PATIENCE_S = 600.0
"""For anything that a try waits for."""
OTHER = "transformers"
"""The package that one host has in another version."""
HELD_RETRY_S = 5.0


class Broken(AssertionError):
    """A promise that was not kept."""


class Try:
    """One try of a case: a cluster, a run that works on it, and a driver that may be killed.

    Args:
        cluster: three hosts, or two where the third joins.
        folder: takes the logs.
    """

    def __init__(
        self, cluster: RayHosts, prepared: Prepared, stage: str, folder: Path, *, long: bool
    ) -> None:
        self.cluster, self.stage, self._folder = cluster, stage, folder
        storage = cluster.group.storage
        self.run = storage / folder.name
        self.notes = Notes(cluster.group.folder / "notes")
        prepared.copy(stage, self.run, long=long)
        self.total = (
            (LONG_STEPS if long else STEPS)
            if stage == "train"
            else (LONG_CANDIDATES if long else CANDIDATES)
        )
        self.result = Result(self.run)
        self.drivers = 0
        self.rows_before: list[str] = []
        self.failed_at = 0.0
        self.counts_from = 0.0
        """Work before this is not yet the going on."""

    def drive(self) -> None:
        """Start the command on the head."""
        self.drivers += 1
        self.log = self._folder / f"driver-{self.drivers}.log"
        with self.log.open("w") as log:
            self.driver = self.cluster.magic_nas(self.stage, "--out", self.run, log=log)

    def said(self) -> str:
        """What the command has said."""
        return self.log.read_text()

    def work_is_on(self) -> None:
        """Wait until a part is done and kept, then somewhat more."""
        if self.stage == "train":
            self._wait(lambda: self.result.checkpoint() >= CHECKPOINT_STEPS, "a checkpoint")
            time.sleep(10 * SLOW_S)
        else:
            self._wait(lambda: len(self.result.rows()) >= 36, "rows")

    def working_host(self) -> int:
        """A host other than the head that has part in the work, once there is one."""
        self._wait(lambda: bool(self._others_at_work()), "work of a host other than the head")
        return self._others_at_work()[0]

    def _others_at_work(self) -> list[int]:
        kind = "train" if self.stage == "train" else "score"
        return [number for number in (2, 3) if self.notes.times(kind, f"host{number}-")]

    def fails(self) -> None:
        """Note what there is: the failure follows at once."""
        self.rows_before = self.result.rows()
        self.failed_at = self.counts_from = time.time()

    def finish(self) -> None:
        """Wait until the command has ended well."""
        if self.wait_for_driver() != 0:
            raise Broken(f"the command ended with {self.driver.returncode}: {self.said()[-2000:]}")

    def wait_for_driver(self) -> int:
        """Its exit code."""
        try:
            return self.driver.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            kill(self.driver)
            raise Broken(f"the command did not end in {PATIENCE_S:.0f} s") from None

    def drive_once_free(self) -> None:
        """The same command again, until it is not refused because the dead driver holds the run."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.drive()
            if self.wait_for_driver() != 2 or "one driver at a time" not in self.said():
                return
            assert time.monotonic() < deadline, self.said()
            time.sleep(HELD_RETRY_S)

    def outcome(self) -> dict[str, Any]:
        """What was lost and how long it took, once the stage is done.

        Raises:
            Broken: if anything was lost that was not to be.
        """
        if not self.result.finished(self.stage):
            raise Broken(f"the stage did not finish: {self.said()[-2000:]}")
        return self._trained() if self.stage == "train" else self._searched()

    def refusal(self) -> dict[str, Any]:
        """As `outcome`, of a command that was to begin nothing."""
        return {"rows_lost": 0, "steps_lost": 0} | self._seconds(time.time())

    def _trained(self) -> dict[str, Any]:
        steps = [row["step"] for row in self.result.store.rows("train")]
        if self.result.checkpoint() != self.total or max(steps) != self.total:
            raise Broken(f"training ended at step {self.result.checkpoint()} of {self.total}")
        if len(steps) != len(set(steps)):
            raise Broken(f"{len(steps) - len(set(steps))} rows of the training log are double")
        trained = sum(len(times) for times in self.notes.times("train").values())
        lost = -(-(trained - 2 * self.total) // 2)
        if lost > CHECKPOINT_STEPS:
            raise Broken(
                f"{lost} steps were done again; {CHECKPOINT_STEPS} lie between checkpoints"
            )
        return {"rows_lost": 0, "steps_lost": lost} | self._seconds(
            self.notes.first_step_after(self.counts_from)
        )

    def _searched(self) -> dict[str, Any]:
        rows, asked = self.result.store.rows("score"), self.result.asked()
        texts = [row["architecture"] for row in rows]
        gone = set(self.rows_before) - set(self.result.rows())
        missing = len(set(asked) - set(texts)) + len(gone)
        if missing or len(texts) != self.total:
            raise Broken(f"{missing} rows are lost; {len(texts)} of {self.total} are there")
        if len(set(texts)) != len(texts):
            raise Broken(f"{len(texts) - len(set(texts))} children were scored twice")
        errors = [row["error"] for row in rows if row["error"]]
        if errors:
            raise Broken(f"{len(errors)} children failed: {errors[0]}")
        return {"rows_lost": 0, "steps_lost": 0} | self._seconds(
            self.result.row_after(self.counts_from)
        )

    def _seconds(self, went_on: float | None) -> dict[str, Any]:
        if went_on is None:
            raise Broken("nothing was done after the failure: it came too late")
        return {"seconds": round(went_on - self.failed_at, 2)}

    def _wait(self, due: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not due():
            if self.driver.poll() is not None or time.monotonic() > deadline:
                raise Broken(f"{what} never came: {self.said()[-2000:]}")
            time.sleep(0.1)


def process_killed(attempt: Try) -> str:
    """A training worker or an evaluator ends by SIGKILL."""
    host = attempt.cluster.group.hosts[attempt.working_host()]
    title = "RayTrainWorker" if attempt.stage == "train" else "EvaluatorHost"
    process = ray_processes(host, title)[0]
    attempt.fails()
    os.kill(process, signal.SIGKILL)
    attempt.finish()
    return "went on by itself"


def host_killed(attempt: Try) -> str:
    """A host with part in the work loses power for good."""
    number = attempt.working_host()
    attempt.fails()
    attempt.cluster.group.hosts[number].lose_power()
    attempt.finish()
    return "went on by itself, on the other hosts"


def host_killed_and_back(attempt: Try) -> str:
    """A host loses power and is a new, empty node of the cluster soon after."""
    number = attempt.working_host()
    attempt.fails()
    attempt.cluster.group.hosts[number].lose_power()
    time.sleep(BACK_AFTER_S)
    attempt.cluster.start([number])
    back_at = time.time()
    attempt.finish()
    used = _used(attempt, number, since=back_at)
    if attempt.stage == "search" and not used:
        raise Broken("the host that was back scored nothing")
    return "went on by itself" + used


def host_added(attempt: Try) -> str:
    """A third host joins."""
    attempt.fails()
    attempt.cluster.start([3])
    attempt.finish()
    used = _used(attempt, 3, since=attempt.failed_at)
    if attempt.stage == "search" and not used:
        raise Broken("the new host scored nothing")
    return "went on" + used


def _used(attempt: Try, number: int, *, since: float) -> str:
    kind = "train" if attempt.stage == "train" else "score"
    found = attempt.notes.times(kind, f"host{number}-").values()
    count = sum(time > since for times in found for time in times)
    what = "steps" if kind == "train" else "children"
    return f"; the new host had part in {count} {what}" if count else ""


def network_cut(attempt: Try) -> str:
    """A host is cut off for a while."""
    host = attempt.cluster.group.hosts[attempt.working_host()]
    attempt.fails()
    host.cut()
    time.sleep(CUT_S)
    host.heal()
    attempt.finish()
    return "went on by itself"


def driver_killed(attempt: Try) -> str:
    """The command ends by SIGKILL and is given again at once."""
    attempt.fails()
    kill(attempt.driver)
    attempt.drive()
    attempt.finish()
    return "the same command went on"


def head_killed(attempt: Try) -> str:
    """The head loses power; the same command on a new cluster of three hosts."""
    attempt.fails()
    attempt.cluster.head.lose_power()
    attempt.cluster.stop()
    attempt.counts_from = time.time()
    attempt.cluster.start([1, 2, 3])
    attempt.drive_once_free()
    attempt.finish()
    return "the same command went on, on a new cluster"


def storage_full(attempt: Try) -> str:
    """The storage takes no byte more; room is made once the command has ended."""
    attempt.fails()
    ballast = attempt.run.with_name("ballast")
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(2**16)):
            pass
    code = attempt.wait_for_driver()
    said = attempt.said()
    if code != 1 or "make room" not in said or "Traceback" in said:
        raise Broken(f"the command ended with {code} and did not say 'make room': {said[-2000:]}")
    ballast.unlink()
    attempt.failed_at = attempt.counts_from = time.time()
    attempt.drive()
    attempt.finish()
    return "ended with exit code 1 and said so; the same command went on"


def other_version(attempt: Try) -> str:
    """One host has another version of a package; nothing starts."""
    attempt.failed_at = time.time()
    attempt.drive()
    code = attempt.wait_for_driver()
    said = attempt.said()
    if code != 2 or OTHER not in said or "Traceback" in said:
        raise Broken(f"the command ended with {code}, not with 2 and a word on {OTHER}: {said}")
    if attempt.notes.times("train") or attempt.notes.times("score"):
        raise Broken("work had begun")
    line = next(line for line in said.splitlines() if OTHER in line)
    return "refused with exit code 2: " + re.sub(r"10\.78\.\d+\.\d+", "<address>", line)[:160]


def other_version_mount(folder: Path) -> dict[str, str]:
    """The package's metadata with another version, to lie over the true one."""
    (true,) = (
        file.locate()
        for file in importlib.metadata.files(OTHER) or []
        if str(file).endswith("dist-info/METADATA")
    )
    other = folder / "METADATA"
    other.write_text(re.sub(r"(?m)^Version: .*", "Version: 0.0.1", Path(str(true)).read_text()))
    return {str(true): str(other)}


@dataclass(frozen=True)
class Case:
    """One thing that may fail.

    Args:
        promised: what is to happen, by stage; a stage without a promise is not tried.
        fail: makes it happen while a run works, and sees the run to its end.
        joins: the third host comes later, and the workload is longer.
        refused: nothing is to start.
        leaves_whole: the cluster can serve another try.
    """

    title: str
    promised: Mapping[str, str]
    fail: Callable[[Try], str]
    joins: bool = False
    refused: bool = False
    leaves_whole: bool = False


_RESUMES = "goes on from the last checkpoint"
_AGAIN = "its children go to others; each is scored once"
CASES: Mapping[str, Case] = {
    "evaluator-killed": Case(
        "an evaluator process killed", {"search": _AGAIN}, process_killed, leaves_whole=True
    ),
    "training-worker-killed": Case(
        "a training worker killed", {"train": _RESUMES}, process_killed, leaves_whole=True
    ),
    "worker-host-killed": Case(
        "a worker host killed",
        {"train": f"{_RESUMES}, on the others", "search": _AGAIN},
        host_killed,
    ),
    "worker-host-killed-and-back": Case(
        "a worker host killed and back",
        {"train": _RESUMES, "search": f"{_AGAIN}; the host is used again"},
        host_killed_and_back,
        joins=True,
    ),
    "new-host": Case(
        "a new host added",
        {"train": "goes on undisturbed", "search": "the host is used"},
        host_added,
        joins=True,
    ),
    "network-cut": Case(
        "a worker host's network cut for 30 s", {"train": _RESUMES, "search": _AGAIN}, network_cut
    ),
    "driver-killed": Case(
        "the driver killed",
        dict.fromkeys(("train", "search"), "the same command goes on"),
        driver_killed,
        leaves_whole=True,
    ),
    "head-host-killed": Case(
        "the head host killed",
        dict.fromkeys(("train", "search"), "the same command goes on, on a new cluster"),
        head_killed,
        leaves_whole=True,
    ),
    "storage-full": Case(
        "the storage full",
        dict.fromkeys(("train", "search"), "exit code 1; with room, the same command goes on"),
        storage_full,
        leaves_whole=True,
    ),
    "other-version": Case(
        "a worker of another package version",
        dict.fromkeys(("train", "search"), "exit code 2 before anything starts"),
        other_version,
        refused=True,
    ),
}


class Lab:
    """The hosts of tries that follow each other; new ones where a try does not leave them whole."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._group: Group | None = None
        self._cluster: RayHosts | None = None

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.__exit__()
        self._group = self._cluster = None

    def try_case(self, case: Case, stage: str, folder: Path) -> dict[str, Any]:
        """One try; says what `happened` and whether it was `ok`.

        Args:
            folder: takes the logs; its name is the run's.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        cluster = self._cluster_for(case, folder / "ray.log")
        attempt = Try(cluster, self._prepared, stage, folder, long=case.joins)
        whole = False
        try:
            if case.refused:
                return {"ok": True, "happened": case.fail(attempt)} | attempt.refusal()
            attempt.drive()
            attempt.work_is_on()
            happened = case.fail(attempt)
            found = {"ok": True, "happened": happened} | attempt.outcome()
            whole = case.leaves_whole
            return found
        except Exception as error:  # whatever it is, the try did not keep its promise
            return {"ok": False, "happened": f"{type(error).__name__}: {error}"}
        finally:
            if not whole:
                self.__exit__()

    def _cluster_for(self, case: Case, log: Path) -> RayHosts:
        if case.leaves_whole and self._cluster is not None:
            for run in self._cluster.group.storage.iterdir():
                shutil.rmtree(run)
            return self._cluster
        self.__exit__()
        self._group = group = Group()
        notes = {"MAGIC_NAS_NOTES": str(group.folder / "notes"), "MAGIC_NAS_SLOW_S": str(SLOW_S)}
        self._cluster = RayHosts(group, CPUS, log=log, env=notes)
        if case.refused:
            group.start(3, mounts=other_version_mount(group.folder))
        self._cluster.start((1, 2) if case.fail is host_added else (1, 2, 3))
        return self._cluster
