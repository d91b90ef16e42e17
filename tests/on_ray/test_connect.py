"""A head that is not there or refuses, and what else is wrong before a run on a cluster starts.

Through the command line, against a real head with a token and an autoscaler: exit code 2, a
sentence that helps, no traceback, nothing written.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from orchestrator.lease import LEASE, hold_lease
from orchestrator.store import RunStore
from supernet.errors import InvalidInput

pytestmark = pytest.mark.ray

TOKEN = "a" * 64
NODE_TYPES = {
    "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
    "worker": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2},
}
CLUSTER_FILE = {
    "cluster_name": "test",
    "max_workers": 2,
    "provider": {"type": "fake_multinode"},
    "head_node_type": "head",
    "available_node_types": NODE_TYPES,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    **{key: {} for key in ("auth", "file_mounts")},
    **{key: [] for key in ("cluster_synced_files", "initialization_commands")},
    **{key: [] for key in ("head_setup_commands", "worker_setup_commands", "setup_commands")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
}


def ray_environment(home: Path, **more: str) -> dict[str, str]:
    """This process's, without what says how Ray lets in; Ray looks for a token under `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])} | more


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a head with one CPU, a token, and an autoscaler that may add two nodes."""
    folder, port = Path(tempfile.mkdtemp(prefix="mn", dir="/tmp")), free_port()
    config, log = folder / "cluster.yaml", folder / "log"
    config.write_text(yaml.safe_dump(CLUSTER_FILE))
    command = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += [f"--temp-dir={folder}", f"--autoscaling-config={config}", "--num-cpus=1"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_FAKE_CLUSTER": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *command],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=ray_environment(folder, **settings),
    )
    try:
        deadline = time.monotonic() + 120
        while "block forever" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)  # it ends all that it started
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


class Command:
    """`magic-nas` in a process with a home folder of its own, and a run's folder in it."""

    def __init__(self, home: Path, *arguments: str, out: str = "run", **environment: str) -> None:
        home.mkdir(exist_ok=True)
        self._out = home / out
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments, "--out", str(self._out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=home,
            env=ray_environment(home, **environment),
        )

    def refused(self) -> str:
        """What it says at its end, which must be a refusal that leaves nothing."""
        try:
            output, _ = self._process.communicate(timeout=300)
        finally:
            self._process.kill()
        assert self._process.returncode == 2, output
        assert "Traceback" not in output
        assert TOKEN not in output
        assert not self._out.exists() or list(self._out.iterdir()) == [self._out / LEASE]
        return output.split("magic-nas: ", 1)[1].strip()


def test_who_does_not_bring_the_token_is_refused(
    head: str, tiny_config: Path, tmp_path: Path
) -> None:
    with_file, other = tmp_path / "file", "b" * 64
    (with_file / ".ray").mkdir(parents=True)
    (with_file / ".ray" / "auth_token").write_text(TOKEN)
    run = ("run", "--config", str(tiny_config), "--address", head)
    ask = ("doctor", "--address", head)
    token = {"RAY_AUTH_MODE": "token"}
    commands = {
        "wrong": Command(tmp_path / "wrong", *run, RAY_AUTH_TOKEN=other, **token),
        "none": Command(tmp_path / "none", *ask),
        "none found": Command(tmp_path / "found", *ask, **token),
        "not sent": Command(with_file, *ask),
    }
    said = {name: command.refused() for name, command in commands.items()}
    assert "refused the one found here: put the head's into" in said["wrong"]
    assert other not in said["wrong"]
    assert "none was found here: copy the head's" in said["none"]
    assert "RAY_AUTH_MODE=token needs the token" in said["none found"]
    assert "RAY_AUTH_MODE is None: set RAY_AUTH_MODE=token" in said["not sent"]
    assert all(head in message and "\n" not in message for message in said.values())


def test_what_the_cluster_or_the_storage_cannot_do_is_refused(
    head: str, tiny_config: Path, tmp_path: Path
) -> None:
    run = ("run", "--config", str(tiny_config), "--address", head)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    (tmp_path / "file").write_text("in the way")
    store = RunStore(tmp_path / "second" / "run")
    with hold_lease(store):
        commands = {
            "many": Command(tmp_path / "many", *run, "--set=train.workers=4", **token),
            "storage": Command(tmp_path, *run, out="file/run", **token),
            "held": Command(tmp_path / "second", *run, **token),
        }
        said = {name: command.refused() for name, command in commands.items()}
    assert "train.workers must be at most 3" in said["many"]
    assert "1 CPU cores and 0 GPUs, and its autoscaler can bring it to 3" in said["many"]
    assert "but got 4" in said["many"]
    assert f"{tmp_path}/file" in said["storage"]
    assert f"process {os.getpid()} on {socket.gethostname()} holds {store.uri}" in said["held"]
    assert all("\n" not in message for message in said.values())


def test_workers_that_the_autoscaler_has_yet_to_start_are_not_refused(
    head: str, tmp_path: Path
) -> None:
    code = """
        import sys
        from orchestrator.on_ray.cluster import connect
        with connect(sys.argv[1], user_code=None) as cluster:
            print(cluster.slots, cluster.most_slots, cluster.workers(3, setting="train.workers"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), head],
        env=ray_environment(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["1", "3", "3"], done.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", ["head must answer at --address 127.0.0.1:1", "ray start --head"]),
        ("no-such-host.invalid:6379", ["no-such-host.invalid:6379"]),
        ("nonsense", ["host:port", "'nonsense'"]),
        ("ray://127.0.0.1:10001", ["client protocol", "ray submit"]),
        ("http://127.0.0.1:8265", ["job API", "ray job submit"]),
    ],
)
def test_an_address_without_a_cluster_is_refused(address: str, words: list[str]) -> None:
    from orchestrator.on_ray.cluster import check_head

    with pytest.raises(InvalidInput) as refused:
        check_head(address)
    assert [word for word in words if word not in str(refused.value)] == []


def test_what_listens_but_never_answers_is_given_up_soon() -> None:
    from orchestrator.on_ray.cluster import check_head

    with closing(socket.socket()) as silent:
        silent.bind(("0.0.0.0", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(InvalidInput, match="nothing did within 5 s"):
            check_head(f"127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 10
