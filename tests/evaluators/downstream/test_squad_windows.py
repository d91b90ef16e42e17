"""Windows over long contexts: what they hold, where answers are labelled, what is cut."""

from pathlib import Path
from typing import Any

import pytest

from evaluators.downstream.squad import Answer, Question, read_questions
from evaluators.downstream.squad_windows import Window, make_windows
from evaluators.downstream.tasks import TASKS
from supernet.errors import InvalidInput


def question(context: str, answer: str | None = None, asked: str = "who?") -> Question:
    found = () if answer is None else (Answer(answer, context.index(answer)),)
    return Question("q", "t", asked, context, found, not found)


def text(window: Window, context: str, first: int, last: int) -> str:
    return context[window.offsets[first, 0] : window.offsets[last, 1]]


def test_windows_overlap_by_the_stride_and_cover_the_context(letters: Any) -> None:
    context = "ab cd ef gh ij kl mn op"  # 16 tokens
    windows = make_windows(
        [question(context, "gh")], letters, max_length=14, stride=3, max_question_tokens=4
    )
    places = [[tuple(span) for span in window.offsets if span[0] >= 0] for window in windows]
    assert [len(spans) for spans in places] == [7, 7, 7, 4]  # 14 - [CLS] who? [SEP] [SEP]
    for before, after in zip(places, places[1:], strict=False):
        assert before[-3:] == after[:3]
    assert sorted(set(sum(places, []))) == sorted(
        (place, place + 1) for place, letter in enumerate(context) if letter != " "
    )
    labelled = [window for window in windows if window.start != window.cls]
    assert [text(window, context, window.start, window.end) for window in labelled] == ["gh"]
    for window in windows:
        assert letters.decode(window.input_ids).startswith("[CLS] who? [SEP]")
        assert window.token_type_ids is not None
        assert window.token_type_ids.tolist() == [0] * 6 + [1] * (len(window.input_ids) - 6)
        assert (window.offsets[:6] == -1).all() and (window.offsets[-1] == -1).all()


def test_an_answer_that_a_window_cuts_is_none_in_that_window(letters: Any) -> None:
    context = "abcdefgh"
    cut, whole = make_windows(
        [question(context, "efg")], letters, max_length=13, stride=3, max_question_tokens=4
    )
    assert (cut.start, cut.end) == (0, 0)
    assert text(whole, context, whole.start, whole.end) == "efg"


def test_questions_without_answers_are_labelled_so(letters: Any) -> None:
    (window,) = make_windows([question("ab")], letters, max_length=80, stride=0)
    assert (window.start, window.end, window.cls) == (0, 0, 0)


def test_white_space_around_an_answer_is_not_labelled(letters: Any) -> None:
    (window,) = make_windows([question("ab cd ef", " cd ")], letters, max_length=80, stride=0)
    assert text(window, "ab cd ef", window.start, window.end) == "cd"


@pytest.mark.parametrize(
    ("given", "labelled"),
    [(("ab cd ef", "cd", "cd"), "cd"), (("ef", "cd", "ab"), "ef"), (("ab", "cd", "ab"), "ab")],
)
def test_the_answer_that_most_annotators_gave_is_labelled(
    letters: Any, given: tuple[str, ...], labelled: str
) -> None:
    context = "ab cd ef"
    answers = tuple(Answer(answer, context.index(answer)) for answer in given)
    asked = Question("q", "t", "who?", context, answers, False)
    (window,) = make_windows([asked], letters, max_length=80, stride=0)
    assert text(window, context, window.start, window.end) == labelled


def test_a_long_question_is_cut(letters: Any) -> None:
    asked = question("ab cd", "cd", asked="  who went where and why?")
    (window,) = make_windows([asked], letters, max_length=20, stride=2, max_question_tokens=6)
    assert letters.decode(window.input_ids) == "[CLS] who wen [SEP] ab cd [SEP]"


def test_characters_of_a_byte_level_tokenizer_without_types_are_right() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "</s>", "<pad>", *alphabet]
    model = models.BPE({piece: number for number, piece in enumerate(pieces)}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    context = "in Épinal it 雨 rained"
    for answer in ("Épinal", "雨", "in", "rained"):
        (window,) = make_windows([question(context, answer)], fast)
        assert window.token_type_ids is None
        assert text(window, context, window.start, window.end).strip() == answer


@pytest.mark.parametrize(("max_length", "stride", "most"), [(80, 13, 64), (80, -1, 64), (80, 1, 0)])
def test_windows_without_room_are_refused(
    max_length: int, stride: int, most: int, letters: Any
) -> None:
    with pytest.raises(InvalidInput, match="special tokens > stride >= 0 must hold, but got 80"):
        make_windows(
            [question("ab")],
            letters,
            max_length=max_length,
            stride=stride,
            max_question_tokens=most,
        )


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(InvalidInput, match="need a fast tokenizer"):
        make_windows([question("ab")], object())


def test_every_answer_of_the_real_dev_set_is_whole_in_a_window(
    data_folder: Path, bert: Any
) -> None:
    questions = read_questions(TASKS["squad"], data_folder, "dev")
    windows = make_windows(questions, bert, max_length=128, stride=48, max_question_tokens=32)
    assert len(windows) > 2 * len(questions)
    assert max(len(window.input_ids) for window in windows) <= 128
    answered = {window.question for window in windows if window.start != window.cls}
    assert answered == set(range(len(questions)))
