"""What a task finds out about the node that it runs on.

It is sent there by value, so that it runs where this project is missing or is another version.
Imports the standard library alone, and the rest where it is asked.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGES = ("magic-nas", "torch", "ray", "transformers", "deepspeed", "pyarrow")
OUR_MODULES = ("supernet.space", "evaluators.score", "orchestrator.store")
"""One of each of our folders, where it lies."""
COMPILERS = ("c++", "g++", "clang++")
USUAL_CACHE, CACHE = "~/.cache", "MAGIC_NAS_CACHE"
"""Where a node keeps copies, and the environment variable that names another folder for them."""
TORCH_S = 60


def software() -> dict[str, Any]:
    """Versions of Python and of packages ("" where one is missing), and which source of ours."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "source": source_fingerprint(),
    }


def look(storage: tuple[str, str, str] | None, folders: list[str] | None) -> dict[str, Any]:
    """Everything about this node; sizes in bytes.

    Args:
        storage: a run's URI, the name of a file that the driver wrote there, and its text.
        folders: whose disks to look at, as paths that may begin with ~; None leaves out everything
            about the machine.
    """
    found = software() | {"storage": _storage(*storage) if storage else None}
    return found if folders is None else found | _machine(folders)


def source_fingerprint() -> str:
    """A hash of our modules as this process would import them; "" where they are missing."""
    digest = hashlib.sha256()
    for module in OUR_MODULES:
        try:  # not of the folder itself: one of its name in the working directory would be found
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            return ""
        if spec is None or spec.origin is None:
            return ""
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """On the head: the cluster file that its autoscaler follows, or None if it has no autoscaler.

    An empty one stands for KubeRay's autoscaler, which runs in another container.
    """
    import psutil
    import yaml

    monitors = 0
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        names = [Path(argument).name for argument in line]
        if f"--gcs-address={gcs_address}" not in line or "monitor.py" not in names:
            continue
        monitors += 1
        for argument in line:
            if argument.startswith("--autoscaling-config="):
                path = Path(argument.partition("=")[2]).expanduser()
                config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
                return config
    return {} if not monitors and "KUBERNETES_SERVICE_HOST" in os.environ else None


def _version(package: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def _storage(uri: str, name: str, text: str) -> str | None:
    """What is wrong with the run's storage as seen from here; None if nothing is."""
    try:
        from orchestrator.store import RunStore

        store = RunStore(uri)
        if not store.exists(name):
            return "it does not see there what the driver wrote"
        if store.read_bytes(name).decode() != text:
            return "it reads there something else than the driver wrote"
        store.check_writable()
    except Exception as error:  # whatever it is, the driver says it to the user
        return f"{type(error).__name__}: {error}"
    return None


def _machine(folders: list[str]) -> dict[str, Any]:
    import psutil

    shm = shutil.disk_usage("/dev/shm")
    return {
        "torch_gpus": _torch_gpus(),
        "disk_free": {folder: _disk_free(folder) for folder in map(_as_set_here, folders)},
        "memory_free": psutil.virtual_memory().available,
        "shm_size": shm.total,
        "shm_free": shm.free,
        "compiler": next(filter(None, map(shutil.which, COMPILERS)), None),
        "ninja": shutil.which("ninja", path=_path()) is not None,
    }


def _path() -> str:
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])


def _as_set_here(folder: str) -> str:
    """This node's own cache in place of the usual one."""
    return (os.environ.get(CACHE) or folder) if folder == USUAL_CACHE else folder


def _disk_free(folder: str) -> int:
    path = Path(folder).expanduser()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _torch_gpus() -> int | None:
    """GPUs that PyTorch sees; asked in a process of its own, for Ray hides them from this task."""
    hidden = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        timeout=TORCH_S,
    )
    return int(done.stdout) if done.returncode == 0 else None
