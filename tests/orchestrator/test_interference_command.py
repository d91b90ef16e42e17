"""`magic-nas interference`: groups, findings on planted data, the command and what it refuses."""

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from orchestrator.interference import COLUMNS, interference, sample_groups
from orchestrator.interference_summary import LIKENESSES, format_findings, summarise
from orchestrator.runs import Run
from supernet.checkpoint import WEIGHTS
from supernet.errors import InvalidInput
from supernet.interference import measure_interference
from supernet.model import SuperNet
from supernet.space import Architecture, OperatorSpec, SearchSpace

OPERATORS = {name: OperatorSpec.of("identity") for name in ("a", "b", "c")}
SPACE = SearchSpace.uniform(8, OPERATORS)
SMALL = ("groups=4", "children=4", "batch_size=4", "replicates=100")
FILES = {"interference.parquet", "interference.json", "report.html"}
PLOTS = {f"interference_{name}.png" for name in ("distance", "similarity", "kind_and_depth")}


def settings(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", f"interference.{text}")]


def test_a_group_has_children_at_every_distance_from_its_first() -> None:
    for base, *others in sample_groups(SPACE, seed=0, groups=10, children=7):
        assert [base.distance(other) for other in others] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("children", "expected"), [(3, [1, 3, 5]), (10, [1, 1, 2, 3, 3, 4])])
def test_other_numbers_of_children_are_spread_over_the_distances(
    children: int, expected: list[int]
) -> None:
    base, *others = sample_groups(SPACE, seed=0, groups=1, children=children)[0]
    assert [base.distance(other) for other in others][: len(expected)] == expected


def test_a_group_depends_on_seed_and_number_alone() -> None:
    few = sample_groups(SPACE, seed=3, groups=4, children=5)
    assert few == sample_groups(SPACE, seed=3, groups=9, children=5)[:4]
    assert len(set(few)) == 4
    assert few != sample_groups(SPACE, seed=4, groups=4, children=5)


def test_children_of_a_group_are_different_where_the_space_has_few() -> None:
    space = SearchSpace((("a",), ("a", "b"), ("a",)), OPERATORS)
    for group in sample_groups(space, seed=0, groups=5, children=9):
        assert sorted(map(str, group)) == ["a-a-a", "a-b-a"]


@pytest.mark.parametrize("layers", [(("a", "b"),), (("a",), ("b",), ("a",))])
def test_a_space_of_one_layer_or_without_a_choice_is_refused(layers: Any) -> None:
    with pytest.raises(InvalidInput, match=r"needs two layers and a choice.*larger space"):
        sample_groups(SearchSpace(layers, OPERATORS), seed=0, groups=2, children=2)


def rows(gradient_cosine: Callable[..., Any], groups: int = 30) -> pd.DataFrame:
    """Two hundred shared operators per group; likeness falls with distance, as in a network."""
    rng = np.random.default_rng(0)
    count = groups * 200
    distance = rng.integers(1, 8, count)
    likeness = -0.1 * distance + 0.1 * rng.normal(size=count)
    group = np.repeat(np.arange(groups), 200)
    of_group = rng.normal(size=groups)[group]
    noise = 0.1 * rng.normal(size=count) + 0.05 * of_group
    values = {
        "group": group,
        "pair": np.arange(count) % 20,
        "distance": distance,
        "layer": rng.integers(0, 3, count),
        "operator": "conv3",
        "kind": "separable_conv",
        "gradient_cosine": gradient_cosine(distance, likeness) + noise,
        "step": 0,
        "checkpoint": "initialisation",
    }
    return pd.DataFrame(values | dict.fromkeys(LIKENESSES, likeness))


def verdicts(frame: pd.DataFrame) -> tuple[str, str, str]:
    """Of distance, and of likeness overall and at equal distance, layer and operator."""
    (step,) = summarise(frame, replicates=200, seed=0)["steps"]
    likeness = step["output_cosine"]
    return (
        step["distance"]["verdict"],
        likeness["overall"]["verdict"],
        likeness["within"]["verdict"],
    )


def test_planted_findings_are_found() -> None:
    found = verdicts(rows(lambda distance, likeness: likeness - 0.1 * distance))
    assert found == ("holds", "holds", "holds")


def test_planted_opposites_are_called_reversed() -> None:
    found = verdicts(rows(lambda distance, likeness: 0.1 * distance - likeness))
    assert found == ("reversed", "reversed", "reversed")


def test_where_nothing_is_planted_nothing_is_found() -> None:
    found = verdicts(rows(lambda distance, likeness: np.zeros(len(distance))))
    assert found == ("undecided", "undecided", "undecided")


def test_likeness_that_only_goes_with_distance_is_not_found_at_equal_distance() -> None:
    found = verdicts(rows(lambda distance, likeness: -0.1 * distance))
    assert found == ("holds", "holds", "undecided")


def test_averages_are_those_of_the_rows_and_rows_without_a_cosine_are_left_out() -> None:
    frame = rows(lambda distance, likeness: likeness)
    means = frame.groupby("distance")["gradient_cosine"].mean()
    without = pd.concat([frame, frame.head(50).assign(gradient_cosine=np.nan)])
    (step,) = summarise(without, replicates=100, seed=0)["steps"]
    assert step["rows"] == len(frame)
    for line in step["by_distance"]:
        assert line["value"] == pytest.approx(means[line["distance"]])
        assert line["low"] < line["value"] < line["high"]
    assert sum(line["rows"] for line in step["by_output_cosine"]) == len(frame)


def test_one_distance_alone_determines_no_correlation_with_it() -> None:
    frame = rows(lambda distance, likeness: likeness).assign(distance=1)
    summary = summarise(frame, replicates=100, seed=0)
    assert summary["steps"][0]["distance"]["verdict"] == "undecided"
    assert "not determined" in format_findings(summary)


@pytest.fixture(scope="session")
def measured_run(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """A trained run with its interference measured; not to be written into."""
    out = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(trained_run, out)
    interference(out, [f"interference.{text}" for text in SMALL])
    return out


def test_the_command_prints_findings_and_writes_its_files(
    command: Any, own_trained_run: Path, content: Any
) -> None:
    before = content(own_trained_run)
    done = command("interference", own_trained_run, *settings(*SMALL))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    found = [line.split()[0] for line in lines if "[" in line and not line.startswith("[")]
    assert found == ["initialisation", "step-00000020", "step-00000040", "step-00000060"]
    after = content(own_trained_run)
    assert {name: after[name] for name in before} == before
    plots = {f"plots/{name}" for name in PLOTS | {"supernet_loss.png"}}
    assert set(after) - set(before) == FILES | plots
    assert all(str(own_trained_run / name) in done.out for name in FILES)


def test_rows_name_pairs_and_their_distance(measured_run: Path) -> None:
    frame = pd.read_parquet(measured_run / "interference.parquet")
    assert list(frame.columns) == list(COLUMNS)
    assert sorted(set(zip(frame["step"], frame["checkpoint"], strict=True))) == [
        (0, "initialisation"),
        *((step, f"step-{step:08d}") for step in (20, 40, 60)),
    ]
    for row in frame.itertuples():
        first, second = Architecture.parse(str(row.path_a)), Architecture.parse(str(row.path_b))
        assert row.distance == first.distance(second) > 0
        assert first.operators[int(row.layer)] == second.operators[int(row.layer)] == row.operator
        assert row.kind != "identity"
    keys = frame[["checkpoint", "group", "pair", "layer"]]
    assert not keys.duplicated().any()
    assert frame.groupby(["path_a", "path_b"])["step"].nunique().eq(4).all()


def test_initialisation_is_what_training_began_with(measured_run: Path) -> None:
    run = Run.open(measured_run)
    (paths, *_) = sample_groups(run.space, seed=run.config.seed, groups=4, children=4)
    torch.manual_seed(run.config.seed)
    model = SuperNet(run.space, run.shape)
    expected = measure_interference(model, paths, run.train_batches(batch_size=4).at(0))
    frame = pd.read_parquet(measured_run / "interference.parquet")
    part = frame[(frame["step"] == 0) & (frame["group"] == 0)]
    found = part["gradient_cosine"].tolist()
    assert found == pytest.approx([row.gradient_cosine for row in expected], abs=1e-6)
    pairs = list(combinations(range(len(paths)), 2))
    assert [pairs[number] for number in part["pair"]] == [(r.first, r.second) for r in expected]


def test_measuring_again_gives_the_same_rows(measured_run: Path, own_trained_run: Path) -> None:
    interference(own_trained_run, [f"interference.{text}" for text in SMALL])
    first, again = (
        pd.read_parquet(run / "interference.parquet") for run in (measured_run, own_trained_run)
    )
    pd.testing.assert_frame_equal(first, again)


def test_the_report_shows_it_and_redraws_its_plots(
    command: Any, measured_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(measured_run, tmp_path / "run")
    page = (run / "report.html").read_text()
    assert "<h2>Interference</h2>" in page
    assert page.count("undecided") + page.count("holds") + page.count("reversed") >= 12
    drawn = {name: (run / "plots" / name).read_bytes() for name in PLOTS}
    for name in PLOTS:
        (run / "plots" / name).unlink()
    assert command("report", "--out", run).code == 0
    assert {name: (run / "plots" / name).read_bytes() for name in PLOTS} == drawn


def test_a_run_that_was_not_measured_has_no_such_section(
    command: Any, own_trained_run: Path
) -> None:
    assert command("report", "--out", own_trained_run).code == 0
    assert "Interference</h2>" not in (own_trained_run / "report.html").read_text()


def test_a_setting_picks_the_checkpoints(command: Any, own_trained_run: Path) -> None:
    wanted = "checkpoints=[step-00000040,initialisation]"
    done = command("interference", own_trained_run, *settings(*SMALL, wanted))
    assert done.code == 0, done.err
    found = json.loads((own_trained_run / "interference.json").read_text())
    assert [step["step"] for step in found["steps"]] == [0, 40]
    assert found["settings"]["groups"] == 4


def test_settings_of_the_measurement_are_not_the_runs(command: Any, own_trained_run: Path) -> None:
    path = own_trained_run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["interference"]
    path.write_text(yaml.safe_dump(values))
    assert command("interference", own_trained_run, *settings(*SMALL)).code == 0
    assert yaml.safe_load(path.read_text()) == values
    again = command("train", "--out", own_trained_run, "--local", *settings("groups=7"))
    assert again.code == 0, again.err


@pytest.fixture
def refused(command: Any, own_trained_run: Path, content: Any) -> Callable[..., str]:
    """Measures with settings that must be refused; returns the message."""

    def measure(*texts: str) -> str:
        before = content(own_trained_run)
        done = command("interference", own_trained_run, *settings(*SMALL), *texts)
        assert done.code == 2
        assert done.err.count("magic-nas: ") == 1
        assert "Traceback" not in done.err
        assert content(own_trained_run) == before
        return str(done.err)

    return measure


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("interference.groups=1", ["interference.groups", "greater than or equal to 2", "1"]),
        ("interference.children=0", ["interference.children", "greater than or equal to 1", "0"]),
        ("interference.replicates=5", ["interference.replicates", "equal to 100", "5"]),
        ("interference.grups=5", ["unknown key 'interference.grups'", "did you mean 'groups'?"]),
        ("interference.batch_size=9999", ["training split", "batch_size is 9999", "smaller batch"]),
        ("interference.checkpoints=step-00000020", ["must be a list", "step-00000020"]),
        (
            "interference.checkpoints=[step-00000030]",
            ["initialisation, step-00000020", "'step-00000030'", "leave it out"],
        ),
        ("train.steps=9", ["keys of 'interference'", "train.steps=9"]),
    ],
)
def test_settings_that_break_a_rule_are_refused(
    refused: Callable[..., str], setting: str, words: list[str]
) -> None:
    message = refused("--set", setting)
    assert [word for word in words if word not in message] == []


def test_a_folder_without_a_run_is_refused(command: Any, tmp_path: Path) -> None:
    done = command("interference", tmp_path / "nowhere")
    assert done.code == 2
    assert "a run's folder holds its config.yaml" in done.err
    assert not (tmp_path / "nowhere").exists()


def test_a_run_without_checkpoints_is_refused(
    refused: Callable[..., str], own_trained_run: Path
) -> None:
    for manifest in (own_trained_run / "supernet").glob("*/manifest.json"):
        manifest.unlink()
    message = refused()
    assert "has no checkpoint" in message
    assert "run 'magic-nas train', with another --out" in message


def test_a_damaged_checkpoint_is_refused(
    refused: Callable[..., str], own_trained_run: Path
) -> None:
    weights = own_trained_run / "supernet" / "step-00000040" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    message = refused()
    assert "truncated or damaged" in message
    assert "interference.checkpoints=[" in message


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"layers": 1}, "the space needs two layers and a choice"),
        ({"candidates": {"only": {"kind": "feed_forward"}}}, "0 of them with a choice"),
        (
            {"candidates": {name: {"kind": "identity"} for name in ("one", "two")}},
            "an operator with parameters that two children share",
        ),
    ],
)
def test_a_space_with_nothing_to_compare_is_refused(
    command: Any, tiny_config: Path, tmp_path: Path, space: Any, words: str
) -> None:
    values = yaml.safe_load(tiny_config.read_text())
    values["space"] |= space
    values["train"] |= {"steps": 2, "sampler": {"name": "uniform"}}
    values["search"]["limits"] = ""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "run"
    assert command("train", "--config", config, "--out", out, "--local").code == 0
    done = command("interference", out, *settings(*SMALL))
    assert done.code == 2
    assert words in done.err
    assert not (out / "interference.parquet").exists()
