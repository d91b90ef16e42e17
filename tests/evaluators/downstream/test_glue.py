"""GLUE's files and the hub's tables become examples; what is wrong with them is said."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluators.downstream.glue import Example, read_split
from evaluators.downstream.tasks import TASKS, Task
from supernet.errors import InvalidInput

SST2, QQP, MNLI = TASKS["sst2"], TASKS["qqp"], TASKS["mnli"]
COUNTS = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (4076, 1725),
    "stsb": (5749, 1500),
    "qqp": (10000, 2000),
    "mnli": (1000, 1000),
    "qnli": (4463, 1000),
    "rte": (2490, 277),
}
SHARED_BY_GLUE = {"cola": 16, "stsb": 6}
"""Dev rows that GLUE's own complete files have in train too."""


def write(folder: Path, name: str, text: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", COUNTS)
def test_real_files_load_whole_and_share_no_row_beyond_glue_s_own(
    name: str, data_folder: Path
) -> None:
    task = TASKS[name]
    train = read_split(task, data_folder / "glue", "train")
    dev = read_split(task, data_folder / "glue", "dev")
    assert (len(train), len(dev)) == COUNTS[name]
    assert [example.idx for example in dev] == list(range(len(dev)))
    assert all((example.text_b is None) == (len(task.texts) == 1) for example in train)
    assert read_split(task, data_folder / "glue", "test") is None
    texts = {(example.text_a, example.text_b) for example in train}
    shared = sum((example.text_a, example.text_b) in texts for example in dev)
    assert shared == SHARED_BY_GLUE.get(name, 0)


def test_mnli_s_small_files_train_on_snli_and_leave_both_halves_to_judge_by(
    data_folder: Path,
) -> None:
    rows = [read_split(MNLI, data_folder / "glue", split) for split in ("train", "dev", "dev_mm")]
    assert [len(part or ()) for part in rows] == [1000, 1000, 1000]
    assert rows[0] and rows[0][0] == Example(
        "A person in a black and green outfit is riding a bicycle .",
        "a colorfully dressed child rides a bike",
        0,
        0,
    )
    assert rows == [
        read_split(MNLI, data_folder / "glue" / "MNLI_SNLI_1k", split)
        for split in ("train", "dev", "dev_mm")
    ]


FILES = {
    "cola": ("dev.tsv", 'gj04\t0\t*\tHe "said\n', Example('He "said', None, 0, 0)),
    "sst2": ("dev.tsv", "sentence\tlabel\nfine \t1\n", Example("fine ", None, 1, 0)),
    "mrpc": (
        "msr_paraphrase_test.txt",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n",
        Example("a", "b", 1, 0),
    ),
    "stsb": (
        "dev.tsv",
        "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n",
        Example("a", "b", 3.8, 0),
    ),
    "qqp": (
        "dev.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\ta\tb\t0\n",
        Example("a", "b", 0, 0),
    ),
    "mnli": (
        "dev_matched.tsv",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n",
        Example("a", "b", 2, 0),
    ),
    "qnli": (
        "dev.tsv",
        "index\tquestion\tsentence\tlabel\n17\ta\tb\tnot_entailment\n",
        Example("a", "b", 1, 0),
    ),
    "rte": (
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        Example("a", "b", 0, 0),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_its_original_format_is_read(name: str, tmp_path: Path) -> None:
    file, text, example = FILES[name]
    write(tmp_path, file, text)
    assert read_split(TASKS[name], tmp_path, "dev") == [example]


def test_a_byte_order_mark_other_line_ends_and_blank_last_lines_are_passed_over(
    tmp_path: Path,
) -> None:
    text = "sentence\tlabel\ngood\u2028film\t1\nbad\t0"
    write(tmp_path / "SST-2", "dev.tsv", text)
    plain = read_split(SST2, tmp_path, "dev")
    write(tmp_path / "SST-2", "dev.tsv", b"\xef\xbb\xbf" + f"{text}\n\n \n".encode())
    assert read_split(SST2, tmp_path, "dev") == plain
    write(tmp_path / "SST-2", "dev.tsv", text.replace("\n", "\r\n") + "\r\n\r\n")
    assert read_split(SST2, tmp_path, "dev") == plain
    assert [example.text_a for example in plain] == ["good\u2028film", "bad"]


def test_test_splits_have_no_labels_and_a_header(tmp_path: Path) -> None:
    write(tmp_path, "dev.tsv", FILES["cola"][1])
    write(tmp_path, "test.tsv", "index\tsentence\n0\tHe left.\n1\tLeft he.\n")
    assert read_split(TASKS["cola"], tmp_path, "test") == [
        Example("He left.", None, None, 0),
        Example("Left he.", None, None, 1),
    ]


def test_mrpc_in_glue_s_form_goes_before_the_original_files_and_is_not_mixed_with_them(
    tmp_path: Path,
) -> None:
    name, text, _ = FILES["mrpc"]
    write(tmp_path, name, text)
    write(tmp_path, "msr_paraphrase_train.txt", text)
    write(tmp_path, "dev.tsv", text.replace("\ta\t", "\tc\t"))
    assert read_split(TASKS["mrpc"], tmp_path, "dev")[0].text_a == "c"
    with pytest.raises(InvalidInput, match=r"train split of mrpc must be in .*train\.tsv, but"):
        read_split(TASKS["mrpc"], tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have a header and rows, but .* is empty"),
        ("sentence\tlabel\n", "must have rows, but .*dev.tsv has none"),
        ("text\tlabel\na\t1\n", r"\['sentence'\], but its header has \['text', 'label'\]"),
        ("sentence\tlabel\na\t1\nb\t2\n", r"\['0', '1'\], but line 3 of .*dev.tsv has '2'"),
        ("sentence\tlabel\na\t1\nb\tc\t1\n", "line 3 of .*dev.tsv has 3 fields where 2 are wanted"),
        ("sentence\tlabel\na\t1\n\nb\t1\n", "line 3 of .*dev.tsv has 1 fields where 2"),
        (b"sentence\tlabel\na\xff\t1\n", "must be UTF-8, but .*dev.tsv has byte 0xff"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(
    text: str | bytes, said: str, tmp_path: Path
) -> None:
    write(tmp_path, "dev.tsv", text)
    with pytest.raises(InvalidInput, match=said):
        read_split(SST2, tmp_path, "dev")


@pytest.mark.parametrize("label", ["5.1", "-0.2", "nan", "five"])
def test_a_similarity_off_the_scale_is_refused(label: str, tmp_path: Path) -> None:
    write(tmp_path, "dev.tsv", FILES["stsb"][1].replace("3.800", label))
    with pytest.raises(InvalidInput, match=f"a number from 0 to 5, but line 2 .* '{label}'"):
        read_split(TASKS["stsb"], tmp_path, "dev")


def test_few_broken_rows_of_qqp_are_dropped_with_a_warning_and_many_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header, row = FILES["qqp"][1].splitlines()
    write(tmp_path, "train.tsv", "\n".join([header, *[row] * 1999, "9\t1\t2\thalf a question"]))
    with caplog.at_level(logging.WARNING):
        assert len(read_split(QQP, tmp_path, "train")) == 1999
    assert "dropped 1 of 2000 rows, the first: line 2001" in caplog.text
    write(tmp_path, "train.tsv", "\n".join([header, *[row] * 20, "9\t1", "9\t1"]))
    with pytest.raises(InvalidInput, match="line 22 .* has 2 fields .* and so have 1 more lines"):
        read_split(QQP, tmp_path, "train")


def test_no_row_of_a_test_split_is_dropped_for_the_others_numbers_would_move(
    tmp_path: Path,
) -> None:
    write(tmp_path, "train.tsv", FILES["qqp"][1])
    rows = [f"{number}\tis it so ?\tis it ?" for number in range(1999)]
    write(tmp_path, "test.tsv", "\n".join(["id\tquestion1\tquestion2", *rows, "1999\thalf"]))
    with pytest.raises(InvalidInput, match="line 2001 .* has 2 fields"):
        read_split(QQP, tmp_path, "test")


def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "")
    with pytest.raises(InvalidInput, match=r"train\.tsv and dev\.tsv.*holds \['train\.csv'\]"):
        read_split(SST2, tmp_path, "train")
    with pytest.raises(
        InvalidInput, match=r'must be a folder or "hub", but .*nowhere cannot be read'
    ):
        read_split(SST2, tmp_path / "nowhere", "train")


@pytest.mark.parametrize(("task", "split"), [(SST2, "dev_mm"), (TASKS["squad"], "dev")])
def test_a_split_that_a_task_does_not_have_is_refused(
    task: Task, split: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=f"a split of {task.name} must be"):
        read_split(task, tmp_path, split)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the hub has GLUE: configurations, Parquet files per split, a card."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    pair = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "idx": [0, 1]}
    for config, split, columns in [
        ("mnli", "validation_matched", {"premise": ["a"], "hypothesis": ["b"], "label": [2]}),
        ("mnli", "validation_mismatched", {"premise": ["c"], "hypothesis": ["d"], "label": [1]}),
        ("stsb", "validation", {**pair, "label": [2.5, 5.0]}),
        ("mrpc", "test", {**pair, "label": [-1, -1]}),
        ("rte", "validation", {**pair, "label": [0, -1]}),
        ("sst2", "validation", {"text": ["a"], "label": [0]}),
    ]:
        (folder / config).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / config / f"{split}-00000-of-00001.parquet")
    write(folder, "README.md", "---\nconfigs:\n" + CARD + "---\n")
    return folder


CARD = """\
- config_name: mnli
  data_files:
  - {split: validation_matched, path: mnli/validation_matched-*}
  - {split: validation_mismatched, path: mnli/validation_mismatched-*}
- config_name: stsb
  data_files: [{split: validation, path: stsb/validation-*}]
- config_name: mrpc
  data_files: [{split: test, path: mrpc/test-*}]
- config_name: rte
  data_files: [{split: validation, path: rte/validation-*}]
- config_name: sst2
  data_files: [{split: validation, path: sst2/validation-*}]
"""


def test_the_hub_s_tables_give_the_same_examples_as_files(hub: Path) -> None:
    source = f"hub:{hub}"
    assert read_split(MNLI, source, "dev") == [Example("a", "b", 2, 0)]
    assert read_split(MNLI, source, "dev_mm") == [Example("c", "d", 1, 0)]
    assert [row.label for row in read_split(TASKS["stsb"], source, "dev")] == [2.5, 5.0]
    test = read_split(TASKS["mrpc"], source, "test")
    assert test == [Example("a", "b", None, 0), Example("c", "d", None, 1)]


def test_what_the_hub_does_not_have_is_said(hub: Path) -> None:
    with pytest.raises(InvalidInput, match=r"class from 0 to 1, but row 1 of dev .* has -1"):
        read_split(TASKS["rte"], f"hub:{hub}", "dev")
    with pytest.raises(InvalidInput, match=r"must have \['sentence'\] for sst2, but has"):
        read_split(SST2, f"hub:{hub}", "dev")
    with pytest.raises(InvalidInput, match="did not give the train split .* name a folder"):
        read_split(MNLI, f"hub:{hub}", "train")
