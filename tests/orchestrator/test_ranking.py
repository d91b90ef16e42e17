"""`magic-nas rank`: what it trains and keeps, what it says, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from orchestrator import load_config, run
from orchestrator.local import retrain_locally
from orchestrator.ranking import _plans, rank, sample_children
from orchestrator.ranking_plots import ranking_scores, ranking_taus
from orchestrator.ranking_summary import format_ranking, one_hot, summarise
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.checkpoint import load_checkpoint
from supernet.loss import evaluate
from supernet.model import SuperNet
from supernet.space import Architecture, OperatorSpec, SearchSpace

PNG = b"\x89PNG"
CHILDREN = 10


@pytest.fixture(scope="module")
def ranked_run(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """A trained run with ten children ranked; not to be written into."""
    out = tmp_path_factory.mktemp("ranked") / "run"
    shutil.copytree(trained_run, out)
    rank(out, [f"rank.children={CHILDREN}"], local=True)
    return out


@pytest.fixture
def own_ranked_run(ranked_run: Path, tmp_path: Path) -> Path:
    """A copy of the ranked run, to be written into."""
    out = tmp_path / "ranked"
    shutil.copytree(ranked_run, out)
    return out


def ranking(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "ranking.parquet")


def rows(out: Path) -> list[dict[str, Any]]:
    return RunStore(out).rows("standalone")


def keys(out: Path) -> list[tuple[str, int, int]]:
    return [(row["architecture"], row["seed"], row["train_steps"]) for row in rows(out)]


def test_each_child_is_trained_once_per_seed_and_only_its_result_stays(
    ranked_run: Path, trained_run: Path
) -> None:
    frame = ranking(ranked_run)
    assert len(frame) == frame["architecture"].nunique() == CHILDREN
    wanted = [(child, seed, 20) for child in frame["architecture"] for seed in (1, 2)]
    assert sorted(keys(ranked_run)) == sorted(wanted)
    added = set(os.listdir(ranked_run)) - set(os.listdir(trained_run))
    assert added == {"ranking.parquet", "ranking.json", "report.html", "plots"}
    assert not RunStore(ranked_run).rows("retrain")


def test_the_truth_is_the_valid_loss_after_training_alone(own_ranked_run: Path) -> None:
    this = Run.open_to_measure(own_ranked_run, "rank", [f"rank.children={CHILDREN}"])
    plan = _plans(this, sample_children(this)[3])[1]
    kept = replace(plan, name="kept", folder="kept", result_only=False)
    retrain_locally(this, [kept], lambda name, row: None)
    model = SuperNet(this.space.restricted_to(plan.architecture), this.shape)
    weights = load_checkpoint(this.store, "kept/step-00000020").weights
    model.load_state_dict(dict(weights))
    loss, _ = evaluate(model, plan.architecture, this.eval_batches("valid", sequences=16))
    line = ranking(own_ranked_run).iloc[3]
    assert line["architecture"] == str(plan.architecture)
    assert line["standalone_loss_nats_2"] == pytest.approx(loss, abs=1e-6)
    assert line["standalone_loss_nats_1"] != line["standalone_loss_nats_2"]
    seeds = line[["standalone_loss_nats_1", "standalone_loss_nats_2"]]
    assert line["standalone_loss_nats"] == pytest.approx(seeds.mean())


def test_the_other_score_is_the_super_nets_at_the_newest_checkpoint_or_the_one_given(
    own_ranked_run: Path,
) -> None:
    this = Run.open(own_ranked_run)
    before, trained = ranking(own_ranked_run), rows(own_ranked_run)
    first = Architecture.parse(before["architecture"][0])
    batches = this.eval_batches("valid", sequences=16)

    def inherited(step: str) -> float:
        model = SuperNet(this.space, this.shape)
        model.load_state_dict(dict(load_checkpoint(this.store, f"supernet/{step}").weights))
        return evaluate(model, first, batches)[0]

    assert before["inherited_loss_nats"][0] == pytest.approx(inherited("step-00000060"))
    summary = rank(
        own_ranked_run, [f"rank.children={CHILDREN}"], checkpoint="step-00000020", local=True
    )
    assert summary["checkpoint"] == "step-00000020"
    after = ranking(own_ranked_run)
    assert after["inherited_loss_nats"][0] == pytest.approx(inherited("step-00000020"))
    assert after["standalone_loss_nats"].equals(before["standalone_loss_nats"])
    assert rows(own_ranked_run) == trained


def test_more_children_seeds_or_steps_train_only_what_is_new(own_ranked_run: Path) -> None:
    first = ranking(own_ranked_run)
    rank(own_ranked_run, ["rank.children=12"], local=True)
    more = ranking(own_ranked_run)
    assert more["architecture"][:CHILDREN].equals(first["architecture"])
    assert more["standalone_loss_nats"][:CHILDREN].equals(first["standalone_loss_nats"])
    assert len(rows(own_ranked_run)) == 12 * 2
    rank(own_ranked_run, ["rank.children=12", "rank.seeds=3"], local=True)
    assert len(rows(own_ranked_run)) == 12 * 3
    rank(own_ranked_run, ["rank.children=10", "rank.seeds=1", "rank.steps=5"], local=True)
    assert len(rows(own_ranked_run)) == 12 * 3 + 10
    assert len(keys(own_ranked_run)) == len(set(keys(own_ranked_run)))


def files_of_trainings(run: Path) -> int:
    """Folders may go while they are counted."""
    return sum(len(files) + len(folders) for _, folders, files in os.walk(run / "standalone"))


def test_a_ranking_killed_in_its_training_comes_to_the_same(
    ranked_run: Path, own_trained_run: Path
) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "rank", str(own_trained_run), "--local"]
    command += ["--set", f"rank.children={CHILDREN}"]
    for number in (4, 12):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while files_of_trainings(own_trained_run) + len(rows(own_trained_run)) < number:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (own_trained_run / "ranking.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trainings done before" in done.stderr
    assert sorted(keys(own_trained_run)) == sorted(keys(ranked_run))
    assert ranking(own_trained_run).equals(ranking(ranked_run))


def test_results_that_a_kill_left_between_row_and_folder_count_once(own_ranked_run: Path) -> None:
    row = rows(own_ranked_run)[0]
    store = RunStore(own_ranked_run)
    store.write_json(f"standalone/{row['name']}/result.json", row)
    rank(own_ranked_run, [f"rank.children={CHILDREN}"], local=True)
    assert len(rows(own_ranked_run)) == 2 * CHILDREN
    assert not store.exists("standalone")


def test_children_keep_to_the_limits_unless_told_otherwise(trained_run: Path) -> None:
    this = Run.open_to_measure(trained_run, "rank", ["rank.children=20"])
    costs = [this.cost_model.cost(child).num_params for child in sample_children(this)]
    assert max(costs) <= 6e3
    this = Run.open_to_measure(
        trained_run, "rank", ["rank.children=100", "rank.within_limits=false"]
    )
    costs = [this.cost_model.cost(child).num_params for child in sample_children(this)]
    assert max(costs) > 6e3
    assert len(costs) == 100


@pytest.mark.parametrize(
    ("steps", "error"), [(20, "must be finite"), (1, "must end with a finite loss")]
)
def test_a_child_that_diverges_has_its_error_as_its_result(
    own_trained_run: Path, steps: int, error: str
) -> None:
    this = Run.open_to_measure(own_trained_run, "rank", ["rank.children=10"])
    plan = _plans(this, sample_children(this)[0])[0]
    recipe = plan.recipe.model_copy(
        update={"learning_rate": 1e30, "clip_norm": 0.0, "steps": steps, "warmup_steps": 0}
    )
    retrain_locally(this, [replace(plan, recipe=recipe)], lambda name, row: None)
    folder = own_trained_run / plan.folder
    assert os.listdir(folder) == ["result.json"]
    result = json.loads((folder / "result.json").read_text())
    assert error in result["error"]
    assert "val_loss_nats" not in result


def test_a_child_that_failed_is_left_out_with_a_note(command: Any, own_trained_run: Path) -> None:
    this = Run.open_to_measure(own_trained_run, "rank", ["rank.children=10"])
    child = sample_children(this)[0]
    name = _plans(this, child)[0].name
    this.store.row_writer("standalone").write([{"name": name, "error": "it burst"}])
    done = command("rank", own_trained_run, "--local", "--set", "rank.children=10")
    assert done.code == 0
    assert f"{child} is left out: it burst" in done.log
    assert "9 children" in done.out and "1 more failed" in done.out
    frame = ranking(own_trained_run)
    assert frame["error"].notna().tolist() == [True] + [False] * 9
    assert "1 more failed" in (own_trained_run / "report.html").read_text()


def test_the_command_prints_the_table_and_the_report_shows_it(
    command: Any, own_ranked_run: Path
) -> None:
    shutil.rmtree(own_ranked_run / "plots")
    done = command("rank", own_ranked_run, "--local", "--set", f"rank.children={CHILDREN}")
    assert done.code == 0
    summary = json.loads((own_ranked_run / "ranking.json").read_text())
    tau = summary["statistics"]["kendall_tau"]
    assert f"{tau['estimate']:.3f}" in done.out
    assert "ceiling" in done.out and "number of parameters" in done.out
    page = (own_ranked_run / "report.html").read_text()
    assert "Inherited against stand-alone scores" in page
    assert f"{tau['low']:.3f} … {tau['high']:.3f}" in page
    for name in ("ranking_scores", "ranking_taus"):
        assert (own_ranked_run / "plots" / f"{name}.png").read_bytes().startswith(PNG)


def test_a_ranking_stands_in_no_later_runs_way(
    own_ranked_run: Path, command: Any, tiny_config: Path
) -> None:
    values = yaml.safe_load((own_ranked_run / "config.yaml").read_text())
    del values["rank"]  # as runs of older versions
    (own_ranked_run / "config.yaml").write_text(yaml.safe_dump(values))
    settings = ["--set", "rank.children=11", "--set", "rank.replicates=100"]
    assert command("train", "--out", own_ranked_run, "--local", *settings).code == 0
    assert run(load_config(tiny_config), out=own_ranked_run, local=True, only=("train",))
    assert command("rank", own_ranked_run, "--local", "--set", "rank.children=10").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "rank.children=9"], "rank.children must be greater than or equal to 10"),
        (["--set", "rank.children=1000"], "within the limits (num_params <= 6000)"),
        (
            ["--set", "rank.children=126", "--set", "rank.within_limits=false"],
            "of which 125 were found, but got 126",
        ),
        (["--set", "rank.childs=20"], "did you mean 'children'?"),
        (["--set", "rank.seeds=0"], "rank.seeds must be"),
        (["--set", "train.steps=5"], "nothing but keys of 'rank'"),
        (["--checkpoint", "step-00000050"], "--checkpoint must be one of step-00000020"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    arguments: list[str],
    words: str,
    command: Any,
    own_trained_run: Path,
    content: Callable[[Path], dict[str, bytes]],
) -> None:
    before = content(own_trained_run)
    done = command("rank", own_trained_run, "--local", *arguments)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert content(own_trained_run) == before


def test_a_folder_without_a_run_and_a_super_net_without_training_are_refused(
    command: Any, own_trained_run: Path, tmp_path: Path
) -> None:
    done = command("rank", tmp_path / "nowhere", "--local")
    assert done.code == 2 and "config.yaml" in done.err
    assert not (tmp_path / "nowhere").exists()
    info = json.loads((own_trained_run / "run.json").read_text())
    del info["stages"]["train"]
    (own_trained_run / "run.json").write_text(json.dumps(info))
    done = command("rank", own_trained_run, "--local")
    assert done.code == 2 and "magic-nas train --out" in done.err
    assert "driver.lease" not in os.listdir(own_trained_run)


SPACE = SearchSpace.uniform(4, {name: OperatorSpec.of("identity") for name in ("a", "b", "c")})


def made_frame(count: int = 40, *, seeds: int = 2, noise: float = 0.001) -> pd.DataFrame:
    """Children whose loss falls with the number of `a`, and who are the larger the more they have;
    inherited scores are the other way round."""
    rng = np.random.default_rng(0)
    children = [Architecture(tuple(rng.choice(["a", "b", "c"], size=4))) for _ in range(count)]
    # Layers weigh differently, so that losses seldom tie.
    weights = np.array([1.0, 1.1, 1.23, 1.31])
    of_a = np.array([[name == "a" for name in child.operators] for child in children]) @ weights
    losses = 6 - 0.1 * of_a[:, None] + noise * rng.standard_normal((count, seeds))
    return pd.DataFrame(
        {
            "architecture": list(map(str, children)),
            "inherited_loss_nats": -losses.mean(1),
            "standalone_loss_nats": losses.mean(1),
            **{f"standalone_loss_nats_{seed + 1}": losses[:, seed] for seed in range(seeds)},
            "num_params": (of_a * 1000).astype(int),
            "flops": -(of_a * 1000).astype(int),
            "error": None,
        }
    )


def estimates(summary: dict[str, Any], part: str) -> dict[str, float]:
    return {name: found["estimate"] for name, found in summary[part].items()}


def test_positive_means_agrees_and_more_is_better() -> None:
    summary = summarise(made_frame(), SPACE, replicates=100, seed=0)
    found = estimates(summary, "statistics")
    assert found["kendall_tau"] == found["spearman_rho"] == pytest.approx(-1)
    assert found["pairwise_accuracy"] == 0
    assert found["top_1_regret_nats"] > found["top_5_regret_nats"] > 0.1
    taus = estimates(summary, "predictor_taus")
    assert taus["num_params"] > 0.9
    assert taus["flops"] < -0.9
    assert taus["count of a"] > 0.7
    assert taus["additive_fit"] > 0.8
    assert summary["ceiling_tau"]["estimate"] > 0.8
    for found in (*summary["statistics"].values(), *summary["predictor_taus"].values()):
        assert found["low"] <= found["high"]


def test_the_best_count_may_be_of_what_harms() -> None:
    frame = made_frame()
    frame["standalone_loss_nats"] *= -1
    taus = estimates(summarise(frame, SPACE, replicates=100, seed=0), "predictor_taus")
    assert taus["count of a"] < -0.7


def test_one_seed_has_no_ceiling_and_is_shown_as_a_dash() -> None:
    summary = {
        "checkpoint": "step-00000060",
        "recipe": {"steps": 20},
        **summarise(made_frame(seeds=1), SPACE, replicates=100, seed=0),
    }
    assert summary["ceiling_tau"] == {"estimate": None, "low": None, "high": None}
    assert "from 1 seed each" in format_ranking(summary)
    assert format_ranking(summary).splitlines()[-1].split()[-3:] == ["–", "…", "–"]
    assert ranking_taus(summary).startswith(PNG)


def test_the_one_hot_encoding_tells_every_layer_and_operator() -> None:
    space = SearchSpace((("a", "b"), ("b",), ("a", "b", "c")), SPACE.operators)
    encoded = one_hot([Architecture(("b", "b", "c")), Architecture(("a", "b", "a"))], space)
    assert encoded.tolist() == [[0, 1, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0]]


def test_the_plot_of_scores_leaves_out_what_failed() -> None:
    frame = made_frame()
    broken = frame.copy()
    broken.loc[0, ["standalone_loss_nats", "standalone_loss_nats_1"]] = np.nan
    broken.loc[0, "error"] = "it burst"
    assert ranking_scores(broken) == ranking_scores(frame.iloc[1:])


def test_the_stand_alone_seed_decides_weights_and_batches(own_trained_run: Path) -> None:
    this = Run.open_to_measure(own_trained_run, "rank", ["rank.children=10"])
    first, second = _plans(this, sample_children(this)[0])
    assert (first.seed, second.seed) == (1, 2) != this.config.seed
    assert first.folder != second.folder
    torch.manual_seed(123)  # the caller's state is of no account
    retrain_locally(this, [first, second], lambda name, row: None)
    losses = [
        this.store.read_json(f"{p.folder}/result.json")["val_loss_nats"] for p in (first, second)
    ]
    assert losses[0] != losses[1]
