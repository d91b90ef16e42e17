"""A search by a user's own score, in place of a super-net's."""

import sys

import pytest

from orchestrator import load_leaderboard, search
from orchestrator.config import parse
from orchestrator.runinfo import read_info
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, SearchFailing

SPACE = {
    "layers": 4,
    "candidates": {name: {"kind": "identity"} for name in ("a", "b", "c")},
}
CODE = """
def by_letters(child, wanted="a"):
    return {"hits": child.operators.count(wanted), "size": len(set(child.operators))}

class Scorer:
    def __init__(self, wanted="b"):
        self.wanted = wanted

    def __call__(self, child):
        if "c" in child.operators:
            raise RuntimeError("no c")
        return by_letters(child, self.wanted)

class Mute:
    pass
"""


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "letters.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "letters", raising=False)
    yield str(folder)
    sys.modules.pop("letters", None)


def config_of(user_code=None, **settings):
    objectives = {"hits": "max", "size": "min"}
    search_settings = {"candidates": 30, "batch_size": 5, "objectives": objectives} | settings
    return parse({"user_code": user_code, "space": SPACE, "search": search_settings})


def hits(child):
    return {"hits": child.operators.count("a"), "size": len(set(child.operators))}


def test_a_function_from_python_needs_neither_data_nor_a_super_net(tmp_path):
    search(tmp_path / "run", config=config_of(), scorer=hits, local=True)
    board = load_leaderboard(tmp_path / "run")
    assert len(board) == 30 and board["hits"].is_monotonic_decreasing
    assert [list(board)[:3], set(board["supernet_version"])] == [
        ["architecture", "rank", "wall_s"],
        {"own"},
    ]
    assert set(read_info(RunStore(tmp_path / "run"))["stages"]) == {"search"}


def test_the_same_search_again_is_finished(tmp_path):
    for _ in range(2):
        search(tmp_path / "run", config=config_of(), scorer=hits, local=True)
    assert len(RunStore(tmp_path / "run").rows("score")) == 30


@pytest.mark.parametrize(
    ("scorer", "operator"),
    [({"name": "letters:by_letters", "wanted": "c"}, "c"), ({"name": "letters:Scorer"}, "b")],
)
def test_a_function_or_class_is_named_in_the_configuration(tmp_path, user_code, scorer, operator):
    run = search(
        tmp_path / "run", config=config_of(user_code, scorer=scorer, max_failed=1.0), local=True
    )
    board = load_leaderboard(run.store.uri)
    for row in board.to_dict("records"):
        assert row["hits"] == row["architecture"].split("-").count(operator)
    errors = [row["error"] for row in run.store.rows("score") if row["error"]]
    assert len(board) + len(errors) == 30
    assert set(errors) <= {"RuntimeError: no c"}


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"name": "letters:absent"}, "cannot load the scorer 'letters:absent'"),
        ({"name": "letters:Mute"}, "no __call__"),
        ({"name": "letters:Scorer", "depth": 3}, "unexpected keyword argument 'depth'"),
        ({"name": "letters"}, "unknown scorer 'letters'"),
    ],
)
def test_what_is_no_scorer_is_refused_before_anything_starts(tmp_path, user_code, scorer, message):
    with pytest.raises(InvalidInput, match=message):
        search(tmp_path / "run", config=config_of(user_code, scorer=scorer), local=True)
    assert not (tmp_path / "run").exists()


def test_a_search_of_which_most_children_fail_stops_and_says_why(tmp_path, user_code):
    config = config_of(user_code, scorer={"name": "letters:Scorer"})
    with pytest.raises(SearchFailing, match=r"of the \d+ children[^$]*RuntimeError: no c"):
        search(tmp_path / "run", config=config, local=True)
    rows = RunStore(tmp_path / "run").rows("score")
    assert 10 <= sum(row["error"] is not None for row in rows) <= len(rows) < 30


def test_a_limit_that_cannot_be_counted_yet_is_refused(tmp_path):
    config = config_of(limits="num_params <= 1e6")
    with pytest.raises(InvalidInput, match="needs the vocabulary to count with"):
        search(tmp_path / "run", config=config, scorer=hits, local=True)


def test_without_a_super_net_and_a_scorer_a_search_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="'data' is not finished"):
        objectives = {"val_loss_nats": "min"}
        search(tmp_path / "run", config=config_of(objectives=objectives), local=True)


def test_rows_outlive_bad_input_that_shows_late(tmp_path, monkeypatch):
    def refuse(*_):
        raise InvalidInput("too late")

    monkeypatch.setattr("orchestrator.stages.write_leaderboard", refuse)
    with pytest.raises(InvalidInput, match="too late"):
        search(tmp_path / "run", config=config_of(), scorer=hits, local=True)
    assert len(RunStore(tmp_path / "run").rows("score")) == 30
