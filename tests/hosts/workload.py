"""What the hosts work on: a training or a search of less than a minute, slowed by an operator.

The operator notes when and where it runs, in a folder that is not on the run's storage.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from orchestrator import load_config, run
from orchestrator.on_ray.node_probe import source_fingerprint
from orchestrator.runinfo import is_finished
from orchestrator.store import RunStore

STEPS, CHECKPOINT_STEPS, CANDIDATES = 150, 25, 240
LONG_STEPS, LONG_CANDIDATES = 450, 600
"""Where a host joins."""
SLOW_S = 0.2
CODE = """
import os, socket, time
from torch import nn
from supernet.operators import FeedForward

class Slow(nn.Module):
    def __init__(self, *, hidden_size, dropout):
        super().__init__()
        self.inner = FeedForward(hidden_size=hidden_size, dropout=dropout, inner_size=8)

    def forward(self, hidden, mask):
        notes = os.environ.get("MAGIC_NAS_NOTES")
        if notes:
            kind = "train" if self.training else "score"
            with open(f"{notes}/{kind}-{socket.gethostname()}-{os.getpid()}", "a") as file:
                print(time.time(), file=file)
            time.sleep(float(os.environ["MAGIC_NAS_SLOW_S"]))
        return self.inner(hidden, mask)

    def flops(self, length):
        return self.inner.flops(length)
"""
WORDS = ("a", "cat", "dog", "sees", "hears", "runs", "sleeps", "over", "small", "house", "then")
LAYERS = 6


class Prepared:
    """A run with data and a run with a trained super-net, made once, without delay, and copied.

    Args:
        folder: on a disk that all hosts see; what this source made there is used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        done = folder / f"by-{source_fingerprint()}"
        if done.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "slow_child.py").write_text(CODE)
        rng = random.Random(0)
        text = "\n".join(" ".join(rng.choices(WORDS, k=30)) for _ in range(300))
        (folder / "text.txt").write_text(text)
        config = load_config(None, [f"{key}={json.dumps(v)}" for key, v in _settings(folder)])
        for name, stages in (("train", ("data",)), ("search", ("data", "train"))):
            run(config, out=folder / name, local=True, only=stages)
        done.touch()

    def copy(self, stage: str, to: Path, *, long: bool) -> None:
        """The folder of a run that can begin with the stage."""
        shutil.copytree(self._folder / stage, to)
        values = yaml.safe_load((to / "config.yaml").read_text())
        if stage == "train":
            values["train"]["steps"] = LONG_STEPS if long else STEPS
        values["search"]["candidates"] = LONG_CANDIDATES if long else CANDIDATES
        (to / "config.yaml").write_text(yaml.safe_dump(values))


def _settings(folder: Path) -> Iterator[tuple[str, Any]]:
    free = ["attention", "feed_forward", "identity", "conv3"]
    operators: dict[str, Any] = {name: {"kind": name} for name in free[:3]}
    operators["conv3"] = {"kind": "separable_conv", "kernel_size": 3}
    operators["slow"] = {"kind": "slow_child:Slow"}
    yield "user_code", str(folder / "code")
    yield "data", {"source": f"{folder}/text.txt", "vocab_size": 200, "sequence_length": 16}
    yield "space.layers", LAYERS
    yield "space.hidden_size", 16
    yield "space.candidates", operators
    yield "space.per_layer", {n: free if n < LAYERS - 1 else ["slow"] for n in range(LAYERS)}
    yield "train.steps", CHECKPOINT_STEPS
    yield "train.checkpoint_steps", CHECKPOINT_STEPS
    yield "train.workers", 2
    yield "train.batch_size", 8
    yield "train.warmup_steps", 5
    yield "train.probe_paths", 0
    yield "train.collapsed_within_nats", None
    yield "search.batch_size", 12
    yield "search.valid_sequences", 16
    yield "search.searcher", {"name": "random"}


class Notes:
    """What the slow operator notes: times by kind, host and process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def times(self, kind: str, host: str = "") -> dict[str, list[float]]:
        """By process; of one host, or of all."""
        found = {}
        for path in sorted(self._folder.glob(f"{kind}-{host}*")):
            found[path.name] = [float(line) for line in path.read_text().split()]
        return found

    def first_step_after(self, when: float) -> float | None:
        """When training went on: a worker's that is new, or the third of one that was there.

        A worker that is there may end its step, and begin one, before it misses the others.
        """
        found = []
        for times in self.times("train").values():
            later = [time for time in times if time > when]
            skipped = 0 if times and times[0] > when else 2
            found += later[skipped : skipped + 1]
        return min(found, default=None)


class Result:
    """What lies in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder)

    def finished(self, stage: str) -> bool:
        """Whether the stage came to its end."""
        return is_finished(self.store, stage)

    def checkpoint(self) -> int:
        """The step of the newest whole checkpoint of the super-net, 0 where there is none."""
        names = self.store.names("supernet")
        whole = [name for name in names if self.store.exists(f"supernet/{name}/manifest.json")]
        return max((int(name.removeprefix("step-")) for name in whole), default=0)

    def rows(self) -> list[str]:
        """The scored children, each as its row."""
        return [json.dumps(row, sort_keys=True) for row in self.store.rows("score")]

    def asked(self) -> list[str]:
        """The children that the batch log names."""
        return [
            text
            for name in self.store.names("search/batches")
            for text in self.store.read_json(f"search/batches/{name}")["candidates"]
        ]

    def row_after(self, when: float) -> float | None:
        """When the first rows after that time were kept."""
        parts = self.store.local_path("rows").glob("score-*")
        return min((t for path in parts if (t := path.stat().st_mtime) > when), default=None)
