"""Spans of a context as fine-tuning sees them: features that train, outputs that are scored."""

from dataclasses import replace

import pytest
import torch
from transformers import BertTokenizerFast

from evaluators.downstream.heads import TaskData
from evaluators.downstream.span_head import SpanHead
from evaluators.downstream.squad import Answer, Question
from evaluators.downstream.tasks import task_named

CONTEXT = "my red dog sees a cat . then the small cat sleeps under a tree"


def question(number: int, text: str) -> Question:
    start = CONTEXT.index(text)
    return Question(f"q{number}", "t", "who sleeps ?", CONTEXT, (Answer(text, start),), False)


def head_of(task: str, questions: list[Question], **settings):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(CONTEXT.split()))]
    tokenizer = BertTokenizerFast(
        vocab={word: number for number, word in enumerate([*vocabulary, "who", "?"])}
    )
    data = TaskData(task_named(task), questions, {"dev": questions}, {})
    options = {"max_length": 80, "stride": 4, "max_question_tokens": 64, "n_best": 5}
    options |= {"max_answer_tokens": 6}
    return SpanHead(data, tokenizer, **{**options, "no_answer_threshold": None, **settings})


def outputs_for(head, confident: float = 9.0) -> list[torch.Tensor]:
    """Logits that a model would give which has learnt the training features by heart."""
    outputs = []
    for feature in head.train_features:
        logits_T2 = torch.zeros(len(feature["input_ids"]) + 3, 2)
        logits_T2[feature["start_positions"], 0] = confident
        logits_T2[feature["end_positions"], 1] = confident
        outputs.append(logits_T2)
    return outputs


@pytest.mark.parametrize("task", ["squad", "squad2"])
def test_a_model_that_knows_the_labels_scores_one(task: str) -> None:
    head = head_of(task, [question(0, "red dog"), question(1, "small cat")])
    scores = head.scores(outputs_for(head))
    assert scores["exact_match"] == scores["f1"] == head.headline(scores) == 1.0
    assert head.truncated == 0
    assert "labels" not in head.train_features[0]
    assert "start_positions" not in head.dev_features[0]


def test_a_given_threshold_decides_on_no_answer() -> None:
    impossible = replace(question(1, "cat"), answers=(), is_impossible=True)
    questions = [question(0, "red dog"), impossible]
    head = head_of("squad2", questions)
    outputs = outputs_for(head)
    assert head.scores(outputs)["f1"] == 1.0
    always = head_of("squad2", questions, no_answer_threshold=100.0).scores(outputs)
    never = head_of("squad2", questions, no_answer_threshold=-100.0).scores(outputs)
    assert (always["has_answer_f1"], always["no_answer_f1"]) == (1.0, 0.0)
    assert (never["has_answer_f1"], never["no_answer_f1"]) == (0.0, 1.0)
    assert never["null_odds"] == -100.0
