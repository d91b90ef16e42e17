"""Who may come in: from another host, nothing of the cluster answers without the right token."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.hosts.machines import Group, kill, why_not
from tests.hosts.ray_hosts import CLIENT_PORT, DASHBOARD_PORT, ENV, PORT, RayHosts

REASON = why_not()
pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(REASON), reason=REASON or "")]
TOKENS = {
    "none": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
    "wrong": {"RAY_AUTH_TOKEN": "b" * 64},
    "right": {},
}
PROBE = """
import os, sys, urllib.error, urllib.request
head, gcs, client, dashboard, name, *pages = sys.argv[1:]

def answers(name, ask):
    try:
        print(">", name, ask(), flush=True)
    except Exception as error:
        print(">", name, type(error).__name__, str(error).replace(chr(10), " "), flush=True)

def ask_gcs():
    from ray._raylet import GcsClient
    return len(GcsClient(address=f"{head}:{gcs}").get_all_node_info(timeout=10))

def ask_client(tries=5):
    from ray.util.client import ray
    try:
        ray.connect(f"{head}:{client}", connection_retries=1)
    except ConnectionAbortedError:  # let in, but on a busy machine the server may not come up
        if tries > 1:
            return ask_client(tries - 1)
        raise
    return ray.cluster_resources()["CPU"]

def ask_page(path):
    token = os.environ["RAY_AUTH_TOKEN"]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{head}:{dashboard}{path}", headers=headers)
    if path == "/api/jobs/":
        request.data = b'{"entrypoint": "touch /tmp/%s"}' % name.encode()
        request.add_header("Content-Type", "application/json")
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code

for path in pages:
    answers(path, lambda: ask_page(path))
answers("gcs", ask_gcs)
answers("client", ask_client)
"""
Answers = dict[tuple[str, str], tuple[int, str]]
PAGES = (
    "/api/version",
    "/nodes?view=summary",
    "/logical/actors",
    "/api/v0/logs?node_ip=",
    "/api/jobs/",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    """A head, and a second host without a node."""
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    with Group() as group:
        cluster = RayHosts(group, [1], log=log)
        group.start(2)
        cluster.start([1], dashboard=True)
        yield cluster


@pytest.fixture(scope="module")
def answers(cluster: RayHosts) -> Iterator[Answers]:
    """Exit code and output of commands on the other host, all at once, by what and token."""
    head, outside = cluster.head.address, cluster.group.hosts[2]
    ports = [str(port) for port in (PORT, CLIENT_PORT, DASHBOARD_PORT)]
    pages = [page + head if page.endswith("=") else page for page in PAGES]
    processes = {}
    for token, variables in TOKENS.items():
        commands = {"probe": ["-c", PROBE, head, *ports, token, *pages]}
        if token != "right":
            words = ["run", "--address", cluster.address, "--out", f"/tmp/run-{token}"]
            commands["run"] = ["-m", "orchestrator.cli", *words]
        for what, command in commands.items():
            processes[what, token] = outside.popen(
                [sys.executable, *command], log=subprocess.PIPE, env=ENV | variables
            )
    try:
        yield {
            key: (process.communicate(timeout=120)[0].decode(), process.returncode)[::-1]
            for key, process in processes.items()
        }
    finally:
        for process in processes.values():
            kill(process)


@pytest.mark.parametrize("token", TOKENS)
def test_only_the_right_token_comes_in(cluster: RayHosts, answers: Answers, token: str) -> None:
    said = answers["probe", token][1]
    print(said)
    found = dict(line.split(" ", 2)[1:] for line in said.splitlines() if line.startswith("> "))
    statuses = {text for path, text in found.items() if path.startswith("/")}
    assert len(found) == len(PAGES) + 2, said
    if token == "right":
        assert (found["gcs"], found["client"], statuses) == ("1", "1.0", {"200"})
    else:
        assert found["gcs"].startswith("AuthenticationError")
        assert found["client"].startswith("ConnectionError")
        assert statuses == {{"none": "401", "wrong": "403"}[token]}


def test_only_the_job_with_the_right_token_runs(cluster: RayHosts, answers: Answers) -> None:
    assert answers
    until = time.monotonic() + 60
    while cluster.head.run(["test", "-e", "/tmp/right"]) and time.monotonic() < until:
        time.sleep(0.5)
    assert [cluster.head.run(["test", "-e", f"/tmp/{token}"]) == 0 for token in TOKENS] == [
        token == "right" for token in TOKENS
    ]


@pytest.mark.parametrize("token", ["none", "wrong"])
def test_a_run_without_the_right_token_is_refused(answers: Answers, token: str) -> None:
    code, said = answers["run", token]
    assert code == 2, said
    assert "token" in said and "Traceback" not in said
