"""The report of whole, partial and hostile runs, from a synthetic run's folder."""

import base64
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import parse
from orchestrator.plots import final_loss_bars
from orchestrator.report import render, write_report
from orchestrator.report_facts import describe_data, describe_result
from orchestrator.report_format import big_number, duration
from orchestrator.run_record import last_of_each_step, read_run
from orchestrator.store import RunStore
from supernet.errors import InvalidInput

PNG = b"\x89PNG\r\n\x1a\n"
PLOTS = {
    "supernet_loss",
    "front",
    "hypervolume",
    "best_so_far",
    "operator_frequency",
    "test_loss",
    "retraining",
}
BASELINE = "-".join(["attention", "feed_forward"] * 4)


def config_text(layers: int = 8) -> str:
    limits = "num_params <= 1.5e6 and flops <= 2e8"
    values = {"space": {"layers": layers}, "search": {"limits": limits, "candidates": 60}}
    return parse(values).to_yaml()


def write_data(store: RunStore) -> None:
    store.write_bytes("config.yaml", config_text().encode())
    summary = {
        "source": "installed-docs",
        "vocab_size": 8192,
        "sequence_length": 64,
        "num_documents": {"train": 21000, "valid": 1100, "test": 1200},
        "num_sequences": {"train": 48000, "valid": 2500, "test": 2600},
        "num_tokens": {"train": 3_072_000, "valid": 160_000, "test": 166_400},
        "overlap_8gram": {"valid": 0.0213, "test": 0.0188},
        "unigram_nats": {"valid": 5.88, "test": 5.91},
    }
    store.write_json("data/summary.json", summary)


def write_training(store: RunStore) -> None:
    rng = random.Random(0)
    train = [
        {
            "step": step,
            "loss_nats": 4.5 + 4.4 * math.exp(-step / 200) + rng.gauss(0, 0.1),
            "learning_rate": 1e-3,
            "tokens_per_s": 9000.0,
        }
        for step in range(0, 1000, 10)
    ]
    store.row_writer("train").write(train)
    probe = [
        {"step": step, "architecture": name, "val_loss_nats": 4.6 + 4 / (1 + step / 100) + shift}
        for shift, name in ((0.1, BASELINE), (0.2, "-".join(["conv3"] * 8)))
        for step in range(200, 1001, 200)
    ]
    store.row_writer("probe").write(probe)


def write_scores(store: RunStore, count: int = 60) -> None:
    rng = random.Random(1)
    operators = ["attention", "feed_forward", "conv3", "conv7", "identity"]
    rows: list[dict[str, Any]] = []
    for number in range(count):
        chosen = [rng.choice(operators) for _ in range(8)]
        size = 1_050_000 + 60_000 * sum(len(name) > 8 for name in chosen)
        failed = number % 20 == 19
        row = {
            "architecture": "-".join(chosen),
            "val_loss_nats": None if failed else 6 - size / 1e6 + rng.gauss(0, 0.1),
            "masked_accuracy": None if failed else 0.2 + rng.random() / 10,
            "num_params": size,
            "flops": size * 100,
            "wall_s": 0.4,
            "supernet_version": "step-20-abc",
            "batch_id": number // 16,
            "error": "out of memory" if failed else None,
        }
        rows.append(row)
    store.row_writer("score").write(rows)


def write_finals(store: RunStore) -> None:
    names = {"best": 4.512, "baseline": 4.615, "control_0": 4.74, "control_1": 4.81}
    rng = random.Random(2)
    rows = [
        {
            "name": name,
            "step": step,
            "loss_nats": loss + 4 * math.exp(-step / 200) + rng.gauss(0, 0.05),
            "val_loss_nats": loss + 4 * math.exp(-step / 200) if step % 200 == 0 else None,
        }
        for name, loss in names.items()
        for step in range(20, 1001, 20)
    ]
    store.row_writer("retrain").write(rows)
    models = [
        {
            "name": name,
            "architecture": BASELINE
            if name == "baseline"
            else "-".join(["conv3", "attention"] * 4),
            "num_params": 1_310_000,
            "flops": 131_000_000,
            "test_loss_nats": loss,
            "masked_accuracy": 0.31,
            "train_steps": 1000,
            "wall_s": 123.4,
        }
        for name, loss in names.items()
    ]
    stages = ("data", "train", "search", "retrain", "export")
    times = {"wall_s": 812.3, "peak_memory_gib": 2.4, "finished_at": "2025-01-02T03:04:05Z"}
    run = {
        "name": "docs-small",
        "seed": 7,
        "versions": {"torch": "2.13.0", "ray": "2.60.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "machine": {"cpus": 2, "memory_gib": 15.6, "gpus": []},
        "stages": dict.fromkeys(stages, times),
        "models": models,
        "unigram_nats": {"valid": 5.88, "test": 5.91},
        "comparison": {"valid": True, "reason": "both are below the unigrams"},
    }
    store.write_json("run.json", run)


WRITERS = (write_data, write_training, write_scores, write_finals)


def write_run(root: Path, stages: int = 4) -> RunStore:
    """A run's folder of which only the first `stages` stages have been done."""
    store = RunStore(root)
    for write in WRITERS[:stages]:
        write(store)
    return store


def report_of(store: RunStore) -> str:
    write_report(store)
    return store.read_bytes("report.html").decode()


def page_of(store: RunStore) -> str:
    """The page without its plots, which take most of the time."""
    return render(read_run(store), {})


class _Page(HTMLParser):
    """Collects addresses, visible text and the tags left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, str]:
    store = write_run(tmp_path_factory.mktemp("runs") / "docs-small")
    return store, report_of(store)


def test_the_sections_come_in_their_order(whole: tuple[RunStore, str]) -> None:
    _, html = whole
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "What was run",
        "Data",
        "Super-net training",
        "Search",
        "Best architecture",
        "Best child, baseline and controls",
        "Time and memory",
    ]
    assert 'class="missing"' not in html and 'role="alert"' not in html


def test_the_result_is_one_sentence_with_both_losses_and_sizes(whole: tuple[RunStore, str]) -> None:
    assert describe_result(read_run(whole[0])) == (
        "The best child has a test loss of 4.512 nats, 0.103 nats below the baseline's 4.615, "
        "with 1.31 M parameters against 1.31 M."
    )


def test_the_page_shows_what_was_run(whole: tuple[RunStore, str]) -> None:
    text = _Page(whole[1]).text
    for part in (
        "390,625 child models",
        "3,072,000",
        "num_params <= 1.5e6",
        "torch 2.13.0",
        "2.1 %",
        "0123456",
    ):
        assert part in text
    assert "3 scores failed" in text


def test_every_plot_is_a_png_beside_the_page_and_inside_it(whole: tuple[RunStore, str]) -> None:
    store, html = whole
    assert {name.removesuffix(".png") for name in store.names("plots")} == PLOTS
    for name in PLOTS:
        png = store.read_bytes(f"plots/{name}.png")
        assert png.startswith(PNG) and len(png) > 5000
        assert base64.b64encode(png).decode() in html


def test_the_page_asks_nothing_of_the_network(whole: tuple[RunStore, str]) -> None:
    page = _Page(whole[1])
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import|<script", whole[1])
    assert page.open == []


def test_the_same_folder_gives_the_same_page(whole: tuple[RunStore, str]) -> None:
    store, html = whole
    assert report_of(store) == html


@pytest.mark.parametrize(
    ("stages", "plots", "said"),
    [
        (0, set(), "The super-net has not been trained yet."),
        (1, set(), "The super-net has not been trained yet."),
        (2, {"supernet_loss"}, "no child model has been scored yet"),
        (3, PLOTS - {"test_loss", "retraining"}, "it has not been retrained yet"),
    ],
)
def test_a_partial_run_shows_what_there_is_and_says_what_is_missing(
    tmp_path: Path, stages: int, plots: set[str], said: str
) -> None:
    html = report_of(write_run(tmp_path, stages))
    assert said in html
    assert "Not finished: data, train, search, retrain, export." in html
    assert "<code>magic-nas retrain</code>" in html
    assert {path.stem for path in tmp_path.glob("plots/*.png")} == plots
    assert _Page(html).open == []


def test_retraining_under_way_is_drawn_before_any_model_is_done(tmp_path: Path) -> None:
    store = write_run(tmp_path, 1)
    store.row_writer("retrain").write(
        [{"name": "best", "step": 1, "loss_nats": 9.0, "val_loss_nats": None}]
    )
    write_report(store)
    assert (tmp_path / "plots/retraining.png").exists()


def test_a_search_in_which_every_score_failed_is_told(tmp_path: Path) -> None:
    store = write_run(tmp_path, 2)
    store.row_writer("score").write(
        [{"architecture": "conv3", "val_loss_nats": None, "error": "out of memory"}]
    )
    assert "No child model has been scored yet (failed: 1)." in page_of(store)


def test_an_invalid_comparison_is_a_visible_notice_with_its_reason(tmp_path: Path) -> None:
    store = write_run(tmp_path)
    run = store.read_json("run.json")
    run["comparison"] = {"valid": False, "reason": "the baseline is not below the unigrams"}
    store.write_json("run.json", run)
    html = page_of(store)
    assert 'role="alert"' in html and "the baseline is not below the unigrams" in html
    assert "not a valid comparison" in html


def test_scores_of_two_super_nets_are_a_notice(tmp_path: Path) -> None:
    store = write_run(tmp_path, 3)
    row = store.rows("score")[0] | {
        "architecture": "-".join(["conv3"] * 8),
        "supernet_version": "step-40-abc",
    }
    store.row_writer("score").write([row])
    assert "These scores come from 2 versions" in page_of(store)


def test_text_from_the_run_is_escaped(tmp_path: Path) -> None:
    store = write_run(tmp_path)
    bad = "<script>alert(1)</script>\"'&"
    run = store.read_json("run.json")
    run |= {"name": bad, "commit": bad, "versions": {bad: bad}, "machine": {"cpu": bad}}
    run["comparison"] = {"valid": False, "reason": bad}
    run["models"][2]["name"] = bad
    run["models"][2]["architecture"] = bad
    store.write_json("run.json", run)
    store.write_json("data/summary.json", {"source": bad})
    page = _Page(page_of(store))
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 7


@pytest.mark.parametrize("name", ["$a^{$ <b> &", "long" * 40])
def test_a_name_of_any_kind_is_drawn(name: str) -> None:
    assert final_loss_bars([{"name": name, "test_loss_nats": 4.5}], None).startswith(PNG)


def test_steps_repeated_after_a_restart_count_once_and_the_last_one_wins() -> None:
    rows = [{"step": step, "loss_nats": loss} for step, loss in ((1, 9.0), (2, 8.0), (1, 7.0))]
    frame = last_of_each_step("train", rows)
    assert frame["step"].tolist() == [1, 2]
    assert frame["loss_nats"].tolist() == [7.0, 8.0]


@pytest.mark.parametrize(
    ("kind", "key", "loss"),
    [("probe", "architecture", "val_loss_nats"), ("retrain", "name", "loss_nats")],
)
def test_the_same_step_of_another_path_or_model_is_not_a_repetition(
    kind: str, key: str, loss: str
) -> None:
    rows = [{key: name, "step": 1, loss: value} for name, value in (("a", 1), ("b", 2), ("a", 3))]
    frame = last_of_each_step(kind, rows)
    assert dict(zip(frame[key], frame[loss], strict=True)) == {"a": 3.0, "b": 2.0}


def test_a_summary_with_tokens_per_split_or_in_all_is_read() -> None:
    in_all, per_split = (
        describe_data({"num_tokens": 5}),
        describe_data({"num_tokens": {"train": 5}}),
    )
    assert in_all[0].tokens is None and per_split[0].tokens == 5
    assert describe_data({}) == []


def test_a_search_for_several_metrics_of_a_users_own_has_a_front_of_those(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "own")
    search = {"objectives": {"error_rate": "min", "joules": "min", "recall": "max"}}
    store.write_bytes("config.yaml", parse({"search": search}).to_yaml().encode())
    store.row_writer("score").write([own_score(number) for number in range(30)])
    page = " ".join(report_of(store).split())
    assert "no other beats in error_rate and joules and recall, ten of them" in page
    assert re.search(r"child models scored so far has a error_rate of 0;", page)
    assert {"front", "hypervolume", "best_so_far"} <= {
        name.removesuffix(".png") for name in store.names("plots")
    }


def own_score(number: int) -> dict[str, Any]:
    return {
        "architecture": "-".join(["attention", "conv3"][number >> bit & 1] for bit in range(5)),
        "error_rate": float(number),
        "joules": float(30 - number),
        "recall": 0.5,
        "wall_s": 0.1,
        "supernet_version": "own",
        "error": "ValueError" if number == 29 else None,
    }


def test_the_latency_table_is_shown_with_its_error(tmp_path: Path) -> None:
    store = write_run(tmp_path / "timed", stages=3)
    child = {"architecture": "a", "predicted_ms": 2.0, "measured_ms": 2.5}
    store.write_json(
        "latency.json",
        {
            "device": "cpu",
            "settings": {"batch_size": 1, "threads": 1, "repeats": 30},
            "sequence_length": 64,
            "ends_ms": 1.25,
            "operators_ms": {"attention": 0.75},
            "held_out": [child],
            "winners": [child | {"measured_ms": 2.0}],
        },
    )
    page = " ".join(_Page(report_of(store)).text.split())
    assert "random children by 20.0 % and of winners by 0.0 % (median)." in page
    assert "attention0.750 stem and head1.250" in page
    assert "latency.png" in store.names("plots")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.21, "4.2 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (None, "–"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(390_625, "390,625"), (26**24, "9.1 × 10³³")])
def test_a_large_space_is_told_by_its_exponent(number: int, text: str) -> None:
    assert big_number(number) == text


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is none at"):
        write_report(RunStore(tmp_path / "no-run"))


def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    store = write_run(tmp_path)
    store.write_bytes("run.json", b"[1, 2]")
    with pytest.raises(InvalidInput, match="run.json"):
        write_report(store)


def test_the_leaderboard_is_read_without_matplotlib() -> None:
    code = "import sys, orchestrator.leaderboard; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
