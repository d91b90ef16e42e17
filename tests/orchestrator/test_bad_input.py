"""Bad input through the command line: exit code 2, a message that helps, nothing left behind.

No command here has `--local`: whatever got past the checks would reach Ray, which is trapped.
"""

import json
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supernet.checkpoint import latest_checkpoint


class RayReached(Exception):
    """The command got as far as connecting to Ray."""


@pytest.fixture(autouse=True)
def ray_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise RayReached

    trap = types.ModuleType("orchestrator.on_ray.cluster")
    trap.connect = connect  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, trap.__name__, trap)


@pytest.fixture
def refused(command: Any, tiny_config: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs with settings that must be refused; returns the message."""

    def run(*settings: str, config: Path | None = tiny_config) -> str:
        before = sorted(tmp_path.rglob("*"))
        options = [part for setting in settings for part in ("--set", setting)]
        source = ["--config", config] if config else []
        done = command("run", "--out", tmp_path / "out", *source, *options)
        assert done.code == 2
        assert done.err.count("magic-nas: ") == 1
        assert "Traceback" not in done.err
        assert sorted(tmp_path.rglob("*")) == before
        return str(done.err)

    return run


def test_good_input_does_reach_ray(command: Any, tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(RayReached):
        command("run", "--config", tiny_config, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.stepps=5", ["unknown key 'train.stepps'", "did you mean 'steps'?"]),
        ("serach.candidates=5", ["unknown key 'serach'", "did you mean 'search'?"]),
        ("train.zzz=5", ["unknown key 'train.zzz'", "known keys: steps, batch_size"]),
        ("train.steps=0", ["train.steps", "greater than or equal to 1", "0"]),
        ("train.steps=1.5", ["train.steps", "integer", "1.5"]),
        ("train.steps=many", ["train.steps", "integer", "many"]),
        ("train.learning_rate=nan", ["train.learning_rate", "finite", "nan"]),
        ("space.dropout=1", ["space.dropout", "less than 1", "1"]),
        ("data.sequence_length=4", ["data.sequence_length", "greater than or equal to 8", "4"]),
        ("train=5", ["train", "must hold keys and values", "5"]),
        ("data.libraries=numpy", ["data.libraries", "must be a list", "numpy"]),
        ("space.candidates={}", ["space.candidates must hold at least one entry", "{}"]),
        ("space.candidates={a: [", ["--set space.candidates={a: [", "YAML"]),
        ("seed=-1", ["seed", "greater than or equal to 0", "-1"]),
    ],
)
def test_a_key_or_value_that_breaks_a_rule_is_refused(
    refused: Callable[..., str], setting: str, words: list[str]
) -> None:
    message = refused(setting)
    assert [word for word in words if word not in message] == []
    assert "pydantic" not in message and "Settings" not in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("space.hidden_size=18", ["multiple of heads", "hidden_size=18", "heads=4"]),
        ("space.candidates.pool={kind: pooling}", ["unknown operator kind 'pooling'", "attention"]),
        ("space.candidates.a={heads: 2}", ["candidate 'a' needs a 'kind'", "heads"]),
        ("space.candidates.a={kind: attention, head: 2}", ["'attention'", "'head'"]),
        ("space.candidates.a={kind: attention, heads: [2]}", ["heads", "[2]"]),
        ("space.candidates.a={kind: attention, heads: 2.0}", ["heads", "'a'", "whole", "2.0"]),
        ("space.candidates.a={kind: attention, heads: true}", ["heads", "'a'", "whole", "True"]),
        ("space.candidates.a={kind: separable_conv, kernel_size: three}", ["whole", "'three'"]),
        ("space.candidates.a={kind: feed_forward, layer_norm_eps: -1}", ["above 0", "-1"]),
        ("space.candidates.a={kind: feed_forward, layer_norm_eps: x}", ["a number", "'x'"]),
        ("space.candidates.a={kind: 'broken_operator:Raises'}", ["one raises NameError: name 'no"]),
        ("space.candidates.a={kind: 'broken_syntax:Any'}", ["one raises SyntaxError"]),
        ("space.candidates.A-b={kind: identity}", ["lower-case letters", "'A-b'"]),
        ("space.per_layer={0: [conv3]}", ["hand-made baseline", "'attention' and 'feed_forward'"]),
        ("space.per_layer={0: [atention]}", ["layer 0", "'atention'", "declared are"]),
        ("train.sampler.name=magict", ["unknown sampler 'magict'", "uniform, magic_t"]),
        ("train.sampler={name: magic_t, changes: 99}", ["1 <= changes <= 3", "changes=99"]),
        ("train.sampler={name: magic_t, change: 1}", ["'magic_t'", "'change'"]),
        ("train.sampler={name: 'nowhere:Sampler'}", ["sampler 'nowhere:Sampler'", "nowhere"]),
        ("train.align.weight=-0.1", ["train.align.weight", "greater than or equal to 0", "-0.1"]),
        ("train.align.lambda=1", ["unknown key 'train.align.lambda'", "weight"]),
        ("train.align.start=1.0", ["train.align.start", "less than 1", "1.0"]),
        ("train.align={layers: [0, 3]}", ["train.align.layers", "from 0 to 2", "got 3"]),
        ("train.align={interval: 0}", ["train.align.interval", "0"]),
        ("search.searcher.name=evolve", ["unknown searcher 'evolve'", "random, evolution"]),
        ("search.searcher={name: random, population: 3}", ["'random' has no", "it has: none"]),
        ("search.searcher={nam: random}", ["a searcher is {name: …}", "'nam'"]),
        ("search.searcher={name: 'nowhere:Searcher'}", ["'nowhere:Searcher'", "nowhere"]),
        ("search.objectives={joules: min}", ["search.objectives", "'joules'", "search.scorer"]),
        ("search.objectives={}", ["search.objectives", "at least"]),
        ("search.timeout_s=0", ["search.timeout_s", "greater than 0"]),
        ("trackers=[{name: tensorbord}]", ["trackers are tensorboard", "'tensorbord'"]),
        ("search.searcher.sample=99", ["1 <= sample <= population", "sample=99"]),
        ("train.zero_stage=4", ["train.zero_stage", "less than or equal to 3", "got 4"]),
        ("user_code=/no/such/folder", ["user_code must be a folder", "/no/such/folder"]),
        ("train.batch_size=9", ["batch_size", "multiple of accumulation", "9 and 2"]),
    ],
)
def test_an_operator_sampler_searcher_or_recipe_that_cannot_be_is_refused(
    refused: Callable[..., str],
    setting: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = "from torch import nn\nclass Raises(nn.Module):\n    flops = None\n"
    code += "    def __init__(self, **_):\n        nowhere()\n"
    (tmp_path / "broken_operator.py").write_text(code)
    (tmp_path / "broken_syntax.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    message = refused("train.accumulation=2", setting)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("num_params <= 100", ["num_params <= 100", "smallest possible", "identity", "raise"]),
        ("num_params >= 1e9", ["num_params >= 1000000000", "largest possible", "lower"]),
        ("flops < 5e3 and num_params <= 9e9", ["flops < 5000", "smallest possible"]),
        ("flops > 9e3 and flops <= 9e3", ["flops > 9000 and flops <= 9000", "leave room"]),
        ("1e6 <= num_params and num_params < 9e5", ["num_params >= 1000000 and", "leave room"]),
        ("num_params <= ", ["not allowed is the end", "position 14", "allowed are comparisons"]),
        ("num_params == 5", ["'num_params == 5'", "position 1", "allowed are comparisons"]),
        ("parameters <= 5", ["'parameters'", "did you mean 'num_params'?"]),
        ("__import__('os').abort() < 5", ["__import__('os').abort()", "allowed are comparisons"]),
    ],
)
def test_limits_that_cannot_be_met_or_read_are_refused(
    refused: Callable[..., str], limits: str, words: list[str]
) -> None:
    message = refused(f"search.limits={json.dumps(limits)}")
    assert [word for word in words if word not in message] == []


def test_latency_on_a_device_that_is_not_there_is_refused(refused: Callable[..., str]) -> None:
    message = refused('search.limits="latency_ms <= 8"', "latency.device=cuda:9")
    assert "latency.device must be a device of this machine, cpu" in message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('half written')", "half written"),
        ("Searcher = 3", "must be a class"),
        ("class Searcher:\n    def __init__(self, space, seed): pass", "lacks ask"),
    ],
)
def test_a_module_that_gives_no_searcher_is_refused(
    refused: Callable[..., str], tmp_path: Path, code: str, message: str
) -> None:
    name = f"searcher_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        found = refused(f"user_code={tmp_path}", f"search.searcher={{name: '{name}:Searcher'}}")
    finally:
        sys.dont_write_bytecode = before
    assert message in found


def unreadable(folder: Path) -> Path:
    """A link to itself: no user can read it, not even root."""
    path = folder / "loop.txt"
    path.symlink_to(path)
    return path


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.txt", ["missing file", "none.txt", "data.source"]),
        (written("empty.txt", b""), ["must hold text", "empty.txt", "data.source"]),
        (written("blank.txt", b" \n\n \n"), ["must hold text", "white space"]),
        (unreadable, ["loop.txt", "not", "symbolic links"]),
        (
            written("latin.txt", b"good line\nna\xefve\n"),
            ["UTF-8", "latin.txt", "0xef", "offset 12", "iconv"],
        ),
        (written("a.csv", b"body,n\nhello,1\n"), ["'text'", "a.csv", "body", "data.column"]),
        (written("a.jsonl", b'{"body": "x"}\n'), ["'text'", "line 1", "body", "data.column"]),
        (written("b.jsonl", b'{"text": "x"}\n{"text"\n'), ["one JSON object", "line 2"]),
        (written("short.txt", b"a few words\n"), ["at least one sequence", "more text"]),
        (
            written("small.txt", b"\n".join(b"a few words number %d" % n for n in range(60))),
            ["at least one batch", "batch_size is 64", "more text"],
        ),
    ],
    ids=lambda value: None if callable(value) else value[0].replace(" ", "_"),
)
def test_a_text_that_cannot_be_used_is_refused_with_its_place(
    refused: Callable[..., str], tmp_path: Path, make: Callable[[Path], Path], words: list[str]
) -> None:
    message = refused(f"data.source={make(tmp_path)}", "train.batch_size=64")
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("setting", ["train.workers", "search.evaluators"])
def test_more_workers_than_the_machine_has_are_refused_with_what_it_has(
    refused: Callable[..., str], setting: str
) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("the rule is for machines without a GPU; with one, Ray counts")
    message = refused(f"{setting}=9999")
    assert f"{setting} must be at most {os.cpu_count()}" in message
    assert "9999" in message and "--address" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [("train: [", ["c.yaml", "not valid YAML"]), ("- 1\n", ["c.yaml", "keys and values"])],
)
def test_a_configuration_file_that_is_no_mapping_is_refused(
    refused: Callable[..., str], tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    message = refused(config=tmp_path / "c.yaml")
    assert [word for word in words if word not in message] == []


def test_a_missing_configuration_file_is_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "none.yaml: No such file" in refused(config=tmp_path / "none.yaml")


def test_an_empty_folder_stays_with_what_is_hidden_in_it_after_a_refusal(
    command: Any, tiny_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".keep").write_text("mine")
    done = command(
        "run", "--config", tiny_config, "--out", out, "--set", "search.limits=num_params <= 1"
    )
    assert done.code == 2
    assert [path.name for path in out.iterdir()] == [".keep"]


def test_another_configurations_run_is_refused_and_left_as_it_is(
    command: Any, content: Any, trained_run: Path, tiny_config: Path
) -> None:
    before = content(trained_run)
    options = ["--set", "train.steps=80", "--set", "space.layers=4"]
    done = command("run", "--config", tiny_config, "--out", trained_run, *options)
    assert done.code == 2
    assert "train.steps: 60 there, 80 now" in done.err
    assert "space.layers: 3 there, 4 now" in done.err
    assert "leave out --config and --set" in done.err and "--out" in done.err
    assert content(trained_run) == before


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(
    command: Any, content: Any, tiny_config: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = command("run", "--config", tiny_config, "--out", tmp_path)
    assert done.code == 2
    assert "new, empty or a run's" in done.err and "thesis.tex" in done.err
    assert "another folder with --out" in done.err
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_in_place_of_the_output_folder_is_refused(
    command: Any, tiny_config: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    done = command("run", "--config", tiny_config, "--out", tmp_path / "out")
    assert done.code == 2
    assert "must be a folder" in done.err and "--out" in done.err
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("stage", ["search", "retrain", "export"])
def test_a_stage_without_the_ones_before_it_is_refused(
    command: Any, tmp_path: Path, stage: str
) -> None:
    done = command(stage, "--out", tmp_path / "out")
    assert done.code == 2
    assert f"'{stage}' needs the stages before it, but 'data' is not finished" in done.err
    assert "run 'magic-nas train' or 'magic-nas run' first" in done.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("stage", "missing"), [("retrain", "search"), ("export", "search")])
def test_a_trained_run_says_which_stage_is_next(
    command: Any, content: Any, trained_run: Path, stage: str, missing: str
) -> None:
    before = content(trained_run)
    done = command(stage, "--out", trained_run)
    assert done.code == 2
    assert f"'{missing}' is not finished" in done.err and f"magic-nas {missing}" in done.err
    assert content(trained_run) == before


def test_a_report_is_written_of_what_a_run_has_so_far(command: Any, own_trained_run: Path) -> None:
    assert command("report", "--out", own_trained_run).code == 0
    page = (own_trained_run / "report.html").read_text()
    assert "Super-net training" in page
    assert "report" not in (own_trained_run / "run.json").read_text()


def test_a_report_of_a_folder_without_a_run_is_refused(command: Any, tmp_path: Path) -> None:
    done = command("report", "--out", tmp_path / "out")
    assert done.code == 2
    assert "config.yaml" in done.err and "magic-nas run --out" in done.err
    assert os.listdir(tmp_path) == []


def damage(checkpoint: Path, *, cut: int = 100) -> None:
    weights = checkpoint / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-cut])


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(
    command: Any, own_trained_run: Path
) -> None:
    done = command("search", "--out", own_trained_run, "--checkpoint", "step-00000007")
    assert done.code == 2
    assert "step-00000007" in done.err
    assert "step-00000020, step-00000040, step-00000060" in done.err


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(
    command: Any, own_trained_run: Path
) -> None:
    damage(own_trained_run / "supernet/step-00000040")
    done = command("search", "--out", own_trained_run, "--checkpoint", "step-00000040")
    assert done.code == 2
    assert "step-00000040" in done.err and "sha256" in done.err and "truncated" in done.err
    assert not (own_trained_run / "rows").joinpath("score-0001-000000.jsonl").exists()


def test_another_checkpoint_than_the_one_that_was_searched_is_refused(
    command: Any, finished_run: Path, content: Any
) -> None:
    before = content(finished_run)
    done = command("search", "--out", finished_run, "--checkpoint", "step-00000020")
    assert done.code == 2
    assert "one version of the weights" in done.err and "another run's folder" in done.err
    assert content(finished_run) == before


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    command: Any, own_trained_run: Path
) -> None:
    info = json.loads((own_trained_run / "run.json").read_text())
    del info["stages"]["train"]
    (own_trained_run / "run.json").write_text(json.dumps(info))
    damage(own_trained_run / "supernet/step-00000060")
    done = command("train", "--out", own_trained_run, "--local")
    assert done.code == 0
    assert "step-00000060" in done.log and "truncated" in done.log
    assert "falling back to the checkpoint before it" in done.log
    restored = latest_checkpoint(_files(own_trained_run), "supernet")
    assert restored is not None and restored.step == 60


def _files(folder: Path) -> Any:
    from orchestrator.store import RunStore

    return RunStore(folder)


def test_showing_a_folder_without_a_leaderboard_is_refused(command: Any, tmp_path: Path) -> None:
    done = command("show", tmp_path / "none")
    assert done.code == 2
    assert "leaderboard.parquet" in done.err and "magic-nas search" in done.err
    assert os.listdir(tmp_path) == []


POISON = '''\
import torch
from torch import nn


class Fuse(nn.Module):
    """Gives NaN once it has been trained for a while."""

    CALLS = 0
    LAST = 25

    def __init__(self, *, hidden_size, dropout):
        super().__init__()
        self.inner = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden, mask):
        Fuse.CALLS += self.training
        if Fuse.CALLS > Fuse.LAST:
            return self.inner(hidden) * torch.nan
        return hidden + self.inner(hidden)

    def flops(self, length):
        return 2 * length * self.inner.weight.numel()
'''


def test_a_loss_that_turns_nan_stops_training_and_keeps_the_last_good_checkpoint(
    command: Any, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/fuse_operator.py").write_text(POISON)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = [
        f"user_code={tmp_path / 'code'}",
        "space.layers=1",
        "space.candidates={fuse: {kind: 'fuse_operator:Fuse'}}",
        "train.sampler={name: uniform}",
        "train.probe_paths=0",
    ]
    sets = [part for option in options for part in ("--set", option)]
    arguments = ["train", "--config", tiny_config, "--out", tmp_path / "run", "--local", *sets]
    done = command(*arguments)
    assert done.code == 1
    assert "the loss must be finite, but is nan at step 25 on the path fuse" in done.err
    assert "lower the learning rate" in done.err and "Traceback" not in done.err
    kept = latest_checkpoint(_files(tmp_path / "run"), "supernet")
    assert kept is not None and kept.step == 20
    assert all(bool(tensor.isfinite().all()) for tensor in kept.weights.values())


def test_a_full_disk_loses_nothing_and_the_same_command_finishes_once_there_is_room(
    command: Any, tiny_config: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=4m tmpfs {disk} 2>/dev/null"):
        pytest.skip("a full disk needs root and the right to mount a tmpfs")
    try:
        _fill_and_make_room(command, tiny_config, disk)
    finally:
        os.system(f"umount -l {disk}")  # lazily: the data is mapped


def _fill_and_make_room(command: Any, tiny_config: Path, disk: Path) -> None:
    """Two checkpoints of this size do not fit into 4 MB."""
    arguments = ["train", "--config", tiny_config, "--out", disk / "run", "--local"]
    arguments += ["--set", "space.hidden_size=64", "--set", "search.limits="]
    store = _files(disk / "run")
    done = command(*arguments)
    assert done.code == 1
    assert re.search(r"cannot write supernet/step-00000040/\w+.safetensors \(\d+ b", done.err)
    assert "No space left" in done.err and "make room" in done.err
    assert "Traceback" not in done.err
    kept = latest_checkpoint(store, "supernet")
    assert kept is not None and kept.step == 20
    rows = store.rows("train")
    assert [row["step"] for row in rows][:2] == [10, 20]

    os.system(f"mount -o remount,size=64m {disk}")
    done = command(*arguments)
    assert done.code == 0, done.err
    last = latest_checkpoint(store, "supernet")
    assert last is not None and last.step == 60
    assert store.rows("train")[:2] == rows[:2]
    assert [row["step"] for row in store.rows("train")] == [10, 20, 30, 40, 50, 60]
    assert {row["step"] for row in store.rows("train")} == {10, 20, 30, 40, 50, 60}
