"""The configuration: what is refused, and in which words."""

from pathlib import Path

import pytest

from orchestrator.config import Config, load, parse
from supernet.errors import InvalidInput


def test_the_resolved_configuration_reads_back_as_the_same_value(tmp_path: Path) -> None:
    config = load(None, ["train.steps=7", "space.per_layer={0: [attention, conv3]}"])
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load(tmp_path / "c.yaml") == config


def test_overrides_win_over_the_file_and_read_numbers_as_people_write_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "c.yaml").write_text("train: {steps: 5}\n")
    config = load(tmp_path / "c.yaml", ["train.steps=6", "train.learning_rate=2e-3"])
    assert (config.train.steps, config.train.learning_rate) == (6, 2e-3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepps=5", ["train.stepps", "did you mean 'steps'"]),
        ("tarin.steps=5", ["tarin", "did you mean 'train'"]),
        ("search.candidates=0", ["search.candidates", "greater than or equal to 1", "0"]),
        ("train.learning_rate=-1", ["train.learning_rate", "greater than 0", "-1"]),
        ("train.zero_stage=4", ["train.zero_stage", "less than or equal to 3", "4"]),
        ("data.format=pdf", ["data.format", "'text'", "pdf"]),
        ("train.accumulation=7", ["multiple of accumulation", "64", "7"]),
        ("space.per_layer={9: [attention]}", ["per_layer", "0 to 7", "9"]),
        ("train.precision=fp16", ["train.precision", "'bf16'", "fp16"]),
        ("train.steps", ["key=value", "train.steps"]),
        ("seed.x=1", ["seed"]),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_the_rule_and_the_value(
    override: str, words: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(None, [override])
    for word in words:
        assert word in str(caught.value)


def test_a_layer_that_names_an_undeclared_operator_is_refused() -> None:
    config = parse({"space": {"per_layer": {0: ["attentoin"]}}})
    with pytest.raises(InvalidInput, match="layer 0 names operator 'attentoin'"):
        config.space.build()


def test_a_list_of_wrong_entries_is_not_called_short() -> None:
    with pytest.raises(InvalidInput) as caught:
        load(None, ["finetune.learning_rates=[-1]"])
    assert "finetune.learning_rates.0 must be greater than 0" in str(caught.value)
    assert "at least one entry" not in str(caught.value)
    with pytest.raises(InvalidInput, match="finetune.learning_rates must hold at least one entry"):
        load(None, ["finetune.learning_rates=[]"])


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse({"sead": 1, "train": {"stps": 2}})
    assert "'sead'" in str(caught.value) and "'train.stps'" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\xff"])
def test_a_file_that_is_no_mapping_in_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"c\.yaml"):
        load(path)


@pytest.mark.parametrize("value", ["'500'", "true", "' 5 '"])
def test_no_number_is_read_from_a_word(tmp_path: Path, value: str) -> None:
    (tmp_path / "c.yaml").write_text(f"train: {{steps: {value}}}")
    with pytest.raises(InvalidInput, match="train: steps must be a number, but got"):
        load(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(f"train: {{workers: {value}}}")
    with pytest.raises(InvalidInput, match="train: workers must be a number, but got"):
        load(tmp_path / "c.yaml")


def test_numbers_are_read_as_people_write_them_wherever_they_stand(tmp_path: Path) -> None:
    text = "train: {learning_rate: 1e-3}\nfinetune: {learning_rates: [1e-4, 3E-4, 2.5e-4]}\n"
    (tmp_path / "c.yaml").write_text(text)
    config = load(tmp_path / "c.yaml", ["search.finetune={task: sst2, learning_rate: 1e-2}"])
    assert config.train.learning_rate == 1e-3
    assert config.finetune.learning_rates == (1e-4, 3e-4, 2.5e-4)
    assert config.search.finetune is not None and config.search.finetune.learning_rate == 1e-2


def test_a_key_that_comes_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train:\n  steps: 1\n  batch_size: 2\n  steps: 3\n")
    with pytest.raises(InvalidInput, match=r"c\.yaml has 'steps' again in line 4: remove one"):
        load(tmp_path / "c.yaml")
    merged = "train: &t {steps: 1}\nretrain:\n  <<: *t\n  batch_size: 4\n"
    (tmp_path / "c.yaml").write_text(merged)
    assert load(tmp_path / "c.yaml").retrain.steps == 1


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")


def test_defaults_are_valid() -> None:
    assert Config().space.build().size == 5**8
