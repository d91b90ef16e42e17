"""No secret is written down: not the environment's, and none that a setting or a URI holds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import parse
from orchestrator.credentials import refuse_in_uri
from orchestrator.store import RunStore
from supernet.errors import InvalidInput

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "hf_8d1fQvTokenOfTheHub",
    "AWS_ACCESS_KEY_ID": "AKIAQ7TESTACCESSKEY0",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGsecretOfAws",
    "WANDB_API_KEY": "f00dfacef00dfacef00dfacef00dfacef00dface",
    "RAY_AUTH_TOKEN": "5eb7c0de5eb7c0de5eb7c0de5eb7c0de",
    "MLFLOW_TRACKING_USERNAME": "MlflowUserOfTheTest",
    "MLFLOW_TRACKING_PASSWORD": "MlflowPasswordOfTheTest",
}
PASSWORD = "hunter2hunter2"


def magic_nas(*arguments: object, cwd: Path, **environment: str) -> str:
    """What the command says, on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **SECRETS, **environment},
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    return said


def leaks(folder: Path, said: str) -> list[str]:
    """Where a secret stands: names of files, and "output"."""
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["output"] = said.encode()
    return [
        f"{secret} in {name}"
        for name, data in files.items()
        for secret, value in SECRETS.items()
        if value.encode() in data
    ]


def test_a_secret_that_is_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"token={SECRETS['HF_TOKEN']}")
    assert leaks(tmp_path, "") == [f"HF_TOKEN in {tmp_path}/log"]


def test_a_run_writes_no_secret_of_the_environment(tmp_path: Path, tiny_config: Path) -> None:
    values = yaml.safe_load(tiny_config.read_text())
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    values["trackers"] = [
        {"name": "tensorboard"},
        {"name": "optuna"},
        {"name": "mlflow", "tracking_uri": tracking},
    ]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "run"
    said = magic_nas("run", "--local", "--config", config, "--out", out, cwd=tmp_path)
    written = {path.name for path in out.iterdir()}
    assert {"config.yaml", "run.json", "report.html", "export", "tensorboard"} <= written
    assert leaks(tmp_path, said) == []


def test_wandbs_files_in_the_runs_folder_hold_no_secret(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "own.py").write_text(
        "def score(architecture):\n    return {'value': float(len(architecture.operators))}\n"
    )
    values = {
        "user_code": str(tmp_path),
        "space": {"layers": 2},
        "search": {
            "scorer": {"name": "own:score"},
            "searcher": {"name": "random"},
            "candidates": 4,
            "objectives": {"value": "max"},
        },
        "trackers": [{"name": "wandb", "project": "nas"}],
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "run"
    command = ("search", "--local", "--config", config, "--out", out)
    said = magic_nas(*command, cwd=tmp_path, WANDB_MODE="offline")
    assert list((out / "wandb").rglob("*.wandb"))
    assert leaks(tmp_path, said) == []


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        (
            f"trackers=[{{name: optuna, storage: 'postgresql://me:{PASSWORD}@db/nas'}}]",
            "trackers[0].storage",
        ),
        (
            f"trackers=[{{name: mlflow, tracking_uri: 'https://me:{PASSWORD}@host'}}]",
            "trackers[0].tracking_uri",
        ),
        (f"trackers=[{{name: wandb, api_key: {PASSWORD}}}]", "trackers[0].api_key"),
        (f"search.scorer={{name: 'own:score', Password: {PASSWORD}}}", "search.scorer.Password"),
        (
            f"search.scorer={{name: 'own:s', db: {{secret: {PASSWORD}}}}}",
            "scorer.db.secret",
        ),
        (f"data.source=s3://key:{PASSWORD}@bucket/text", "data.source"),
        (f"data.source=s3://key:a/{PASSWORD}@bucket/text", "data.source"),
        (f"data.source=https://host/text?token={PASSWORD}", "data.source"),
    ],
)
def test_a_setting_with_a_password_is_refused_and_not_repeated(
    command: Any, tiny_config: Path, tmp_path: Path, setting: str, place: str
) -> None:
    out = tmp_path / "run"
    done = command("run", "--config", tiny_config, "--out", out, "--set", setting)
    assert done.code == 2
    assert f"{place} must hold no password or key" in done.err
    assert PASSWORD not in done.err + done.out + done.log
    assert not out.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"source": "text@home", "tokenizer": "org/name"}},
        {"search": {"scorer": {"name": "own:score", "mask_token": "[MASK]", "tokens": 3}}},
        {"trackers": [{"name": "mlflow", "tracking_uri": "http://localhost:5000"}]},
    ],
)
def test_settings_without_a_password_are_taken(settings: dict[str, Any]) -> None:
    parse(settings)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://key:{PASSWORD}@bucket/run",
        f"s3://key:{PASSWORD}@bucket/run?region=eu-central-1",
        f"abfss://:{PASSWORD}@account/container/run",
        f"s3://bucket/run?secret_key={PASSWORD}",
    ],
)
def test_a_runs_uri_with_a_password_is_refused_and_not_repeated(
    command: Any, tiny_config: Path, uri: str
) -> None:
    done = command("run", "--config", tiny_config, "--out", uri)
    assert done.code == 2 and "must be named without a password or key" in done.err
    assert PASSWORD not in done.err + done.out + done.log
    with pytest.raises(InvalidInput) as refused:
        RunStore(uri)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "runs/first",
        "runs/a:b@c",
        "s3://bucket/run?region=eu-central-1&endpoint_override=http://localhost:9000",
        "gs://anonymous@bucket/run",
    ],
)
def test_a_runs_uri_without_a_password_is_taken(uri: str) -> None:
    refuse_in_uri(uri)
