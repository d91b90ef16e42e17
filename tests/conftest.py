"""A tiny text, a configuration of seconds, and runs made from them once for all tests."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.object_store import CREDENTIALS, s3_server

# Before PyTorch starts its threads, here and in subprocesses: sums in another order differ in bits.
os.environ["OMP_NUM_THREADS"] = "1"

os.environ.update(CREDENTIALS)  # Ray's workers have what was there before the cluster started

SENTENCE = "the a cat dog sees hears runs sleeps over under red small house tree and then"
CONFIG = """\
data: {{source: {text}, vocab_size: 200, sequence_length: 16}}
space: {{layers: 3, hidden_size: 16}}
train:
  {{steps: 60, batch_size: 8, checkpoint_steps: 20, warmup_steps: 5, collapsed_within_nats: null}}
search:
  candidates: 20
  batch_size: 4
  valid_sequences: 16
  limits: num_params <= 6e3
  searcher: {{name: evolution, population: 10, sample: 3}}
retrain: {{steps: 20, batch_size: 8, checkpoint_steps: 10, test_sequences: 16, controls: 1}}
"""


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str
    log: str


Command = Callable[..., Done]


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[Command]:
    """Runs `magic-nas` with these arguments in this process."""
    from orchestrator.cli import main

    def run(*arguments: object) -> Done:
        caplog.clear()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err, caplog.text)

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred short documents, one a line."""
    path = tmp_path_factory.mktemp("tiny") / "text.txt"
    rng = random.Random(0)
    path.write_text("\n".join(" ".join(rng.choices(SENTENCE.split(), k=30)) for _ in range(300)))
    return path


@pytest.fixture(scope="session")
def tiny_config(tiny_text: Path) -> Path:
    """A configuration on that text; a run of it takes seconds."""
    path = tiny_text.with_name("config.yaml")
    path.write_text(CONFIG.format(text=tiny_text))
    return path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """A run whose super-net is trained; not to be written into."""
    from orchestrator import load_config, run

    out = tmp_path_factory.mktemp("trained") / "run"
    run(load_config(tiny_config), out=out, local=True, only=("data", "train"))
    return out


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """A run with all stages done; not to be written into."""
    from orchestrator import load_config, run

    out = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(trained_run, out)
    run(load_config(out / "config.yaml"), out=out, local=True)
    return out


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An object store; a run's URI there is this with `.format(folder)`."""
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as uri:
        yield uri


@pytest.fixture
def own_trained_run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be written into."""
    out = tmp_path / "own"
    shutil.copytree(trained_run, out)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(name="content")
def content_fixture() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder and what it holds."""
    return content
