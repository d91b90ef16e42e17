"""The cluster files fit Ray's and KubeRay's rules, and say what `docs/cluster.md` says of them."""

import copy
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
AWS, LOCAL = "cluster.yaml", "examples/cluster.local.yaml"
KUBERAY = "examples/kuberay.yaml"
TOKEN = "~/.ray/auth_token"
RUN = "magic-nas run --config c.yaml --out /shared/first"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_a_cluster_file_fits_rays_schema(name: str) -> None:
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_rays_schema_refuses_a_misspelt_key(name: str) -> None:
    config = {**read(name), "setup_comands": []}
    with pytest.raises(ValidationError, match="setup_comands"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_every_node_gets_the_token_and_asks_for_it(name: str) -> None:
    config = read(name)
    assert config["file_mounts"][TOKEN] == TOKEN
    for start in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token ray start" in start[-1]
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_the_dashboard_listens_on_the_head_alone(name: str) -> None:
    assert "--dashboard-host=127.0.0.1" in read(name)["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_every_node_is_set_up_alike_with_the_pinned_versions(name: str) -> None:
    config = read(name)
    assert any("-c ~/magic-nas/constraints.txt" in line for line in config["setup_commands"])
    for kind in config.get("available_node_types", {}).values():
        assert not {"worker_setup_commands", "initialization_commands"} & set(kind)
    assert "worker_setup_commands" not in config


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_what_is_copied_to_the_nodes_is_enough_to_install(name: str, tmp_path: Path) -> None:
    for remote, source in read(name)["file_mounts"].items():
        if remote != TOKEN:
            there = tmp_path / remote.removeprefix("~/")
            there.parent.mkdir(parents=True, exist_ok=True)
            copy_ = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy_(ROOT / source, there)
    build = "import setuptools.build_meta as build; print(build.build_wheel('.'))"
    folder = tmp_path / "magic-nas"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packed = set(zipfile.ZipFile(folder / done.stdout.split()[-1]).namelist())
    for package in ("orchestrator", "evaluators", "supernet"):
        for path in (ROOT / package).rglob("*.*"):
            if "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in packed


def test_trainers_are_on_demand_and_evaluators_are_spot_instances() -> None:
    kinds = read(AWS)["available_node_types"]
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    assert "InstanceMarketOptions" not in kinds["trainer"]["node_config"]
    assert kinds["evaluator"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "trainer" in kinds["trainer"]["resources"]
    assert "trainer" not in kinds["evaluator"]["resources"]


def test_the_aws_cluster_has_bounds_that_fit_together() -> None:
    config = read(AWS)
    kinds = config["available_node_types"]
    workers = [kind for name, kind in kinds.items() if name != config["head_node_type"]]
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in workers)
    assert sum(kind["max_workers"] for kind in workers) == config["max_workers"]


def test_all_of_ones_own_machines_are_started() -> None:
    prepared = prepare_config(read(LOCAL))
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == len(prepared["provider"]["worker_ips"])
    assert "RAY_enable_autoscaler_v2=0" in prepared["head_start_ray_commands"][-1]


def test_the_two_cluster_files_copy_and_install_the_same() -> None:
    aws, local = read(AWS), read(LOCAL)
    assert aws["file_mounts"] == local["file_mounts"]
    assert aws["setup_commands"][-len(local["setup_commands"]) :] == local["setup_commands"]


def pods(job: Any) -> dict[str, Any]:
    """Pod specs of a RayJob by the name of their group."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    groups["head"] = cluster["headGroupSpec"]
    return {name: group["template"]["spec"] for name, group in groups.items()}


def setting(entrypoint: str, key: str) -> str | None:
    """What the command of a job sets for a key."""
    return next((w.partition("=")[2] for w in entrypoint.split() if w.startswith(f"{key}=")), None)


def faults(job: Any) -> list[str]:
    """What would keep KubeRay from running this RayJob as it is meant."""
    found = []
    cluster, spec = job["spec"]["rayClusterSpec"], job["spec"]
    if (job["apiVersion"], job["kind"]) != ("ray.io/v1", "RayJob"):
        found.append("kind")
    if not spec["entrypoint"].startswith("magic-nas run --config "):
        found.append("entrypoint")
    if cluster["rayVersion"] != ray.__version__:
        found.append("version")
    if cluster.get("authOptions", {}).get("mode") != "token" or not cluster["authOptions"].get(
        "secretName"
    ):
        found.append("token")
    groups = cluster["workerGroupSpecs"]
    (most,) = [group["maxReplicas"] for group in groups if group["groupName"] == "evaluator"]
    if not 1 <= int(setting(spec["entrypoint"], "search.evaluators") or 0) <= most:
        found.append("evaluators")
    for group in groups:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            found.append(f"{group['groupName']}: replicas")
    for group in (cluster["headGroupSpec"], *groups):
        if not all(isinstance(value, str) for value in group["rayStartParams"].values()):
            found.append("start parameters are strings")
    images = set()
    for name, pod in pods(job).items():
        (container,) = pod["containers"]
        images.add(container["image"])
        resources = container["resources"]
        if resources["requests"] != resources["limits"]:
            found.append(f"{name}: resources")
        if name != "head" and resources["limits"].get("nvidia.com/gpu") != "1":
            found.append(f"{name}: GPU")
        folders = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        out = spec["entrypoint"].split("--out ")[1].split()[0]
        if not any(out.startswith(f"{path}/") and of in volumes for path, of in folders.items()):
            found.append(f"{name}: the run's folder")
    if len(images) != 1:
        found.append("image")
    return found


def test_the_rayjob_is_whole() -> None:
    job = read(KUBERAY)
    assert faults(job) == []
    assert set(pods(job)) == {"head", "trainer", "evaluator"}
    start = job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert start["num-cpus"] == "0"
    assert "dashboard-host" not in start  # KubeRay's own; see SECURITY.md


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (("rayClusterSpec", "authOptions", "mode"), "disabled", "token"),
        (("rayClusterSpec", "rayVersion"), "2.9.0", "version"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "start parameters"),
        (("entrypoint",), "magic-nas run --config c.yaml --out /tmp/first", "the run's folder"),
        (("entrypoint",), RUN, "evaluators"),
        (("entrypoint",), f"{RUN} --set search.evaluators=9", "evaluators"),
    ],
)
def test_a_rayjob_with_a_fault_is_found(place: tuple[str, ...], value: Any, fault: str) -> None:
    job = copy.deepcopy(read(KUBERAY))
    inner = job["spec"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert any(fault in found for found in faults(job))


def submit(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "submit.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_submit_takes_the_arguments_of_the_command(tmp_path: Path) -> None:
    done = submit("show", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "magic-nas search" in done.stderr
    assert submit("report", "--out", str(tmp_path), cwd=tmp_path).returncode == 2
    assert "--config FILE" in submit("run", "--help", cwd=tmp_path).stdout


def test_submit_runs_on_the_cluster_that_is_there(tmp_path: Path, tiny_config: Path) -> None:
    run = ("run", "--config", str(tiny_config), "--out", str(tmp_path / "run"))
    done = submit(*run, cwd=tmp_path, RAY_ADDRESS="127.0.0.1:9")
    assert done.returncode == 2
    assert "must answer at --address 127.0.0.1:9" in done.stderr
    assert not (tmp_path / "run").exists()
