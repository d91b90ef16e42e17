"""No secret is written down: not the environment's, and none that a setting or a URI holds."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import load, parse
from orchestrator.credentials import refuse_in_settings, refuse_in_uri
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
        ("search.scorer={name: 'own:score', password: 12345}", "search.scorer.password"),
        ("search.scorer={name: 'own:score', secret: [1, 2]}", "search.scorer.secret"),
        (f"search.scorer={{name: 'own:score', hf_token: {PASSWORD}}}", "search.scorer.hf_token"),
        (f"search.scorer={{name: 'own:score', TOKEN: {PASSWORD}}}", "search.scorer.TOKEN"),
        (f"search.scorer={{name: 'own:score', hub-token: {PASSWORD}}}", "scorer.hub-token"),
        (f"search.scorer={{name: 'own:score', authToken: {PASSWORD}}}", "scorer.authToken"),
        (f"data.source=s3://key:{PASSWORD}@bucket/text", "data.source"),
        (f"data.source=s3://key%3A{PASSWORD}%40bucket/text", "data.source"),
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
    assert "12345" not in done.err + done.out + done.log
    assert not out.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"source": "text@home", "tokenizer": "org/name"}},
        {"search": {"scorer": {"name": "own:score", "mask_token": "[MASK]", "tokens": 3}}},
        {"search": {"scorer": {"name": "own:score", "tokens_per_s": 5, "tokenizer": "org/name"}}},
        {"search": {"scorer": {"name": "own:score", "hf_token": None, "password": ""}}},
        {"search": {"scorer": {"name": "own:score", "token": True, "secret": False}}},
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
        f"s3://bucket/run?secret%5Fkey={PASSWORD}",
        f"s3://key%3A{PASSWORD}@bucket/run",
        f"gs://key%3a{PASSWORD}@bucket/run",
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


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{PASSWORD}@bucket/run",
        f"gs://{PASSWORD}@bucket/run",
        f"ftp://{PASSWORD}@host/run",
        f"s3://{PASSWORD}@bucket/run?option=1",
        f"s3://{PASSWORD}@bucket/run#1",
    ],
)
def test_no_message_repeats_the_user_of_a_uri(uri: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        RunStore(uri)
    assert PASSWORD not in str(refused.value)


def test_a_setting_that_is_there_twice_is_looked_at_once() -> None:
    """Ten levels of ten each; looked through one by one they would be ten thousand million."""
    settings: Any = ["x"] * 10
    for _ in range(9):
        settings = [settings] * 10
    refuse_in_settings({"data": settings})
    with pytest.raises(InvalidInput, match=r"b\.password must hold no password"):
        refuse_in_settings({"a": settings, "b": {"password": settings}})


@pytest.mark.parametrize(
    ("text", "place"), [("data: &a {source: *a}", "data.source"), ("data: [&a [*a]]", r"data\[0\]")]
)
def test_a_setting_that_holds_itself_is_refused(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(InvalidInput, match=f"must not hold itself, but {place}"):
        parse(yaml.safe_load(text))
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InvalidInput, match="aliases or itself"):
        load(tmp_path / "c.yaml")


def nested(first: str, each: str, place: str) -> str:
    """YAML of ten levels, each of which has ten times the one before."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 10):
        inner = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} {each.format(inner)}")
    return place.format(", ".join(lines))


@pytest.mark.parametrize(
    "text",
    [
        nested("[x]", "[{}]", "{{{}}}"),
        nested("[x]", "[{}]", "{{{}, seed: *a9}}"),
        nested("[x]", "[{}]", "search: {{scorer: {{name: 'own:score', {}}}}}"),
        nested("{k: v}", "{{<<: [{}]}}", "{{{}}}"),
        "[" * 2000,
    ],
)
def test_aliases_of_aliases_and_deep_nesting_are_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(InvalidInput, match="aliases or itself|nested too deeply"):
        load(tmp_path / "c.yaml")
    assert time.monotonic() - began < 5


def test_an_alias_stands_for_what_it_names(tmp_path: Path) -> None:
    text = "space: {per_layer: {0: &two [attention, conv3], 1: *two}}\n"
    (tmp_path / "c.yaml").write_text(text + "train: &t {steps: 5}\nretrain: {<<: *t}\n")
    config = load(tmp_path / "c.yaml")
    assert config.space.per_layer[1] == ("attention", "conv3") and config.retrain.steps == 5
