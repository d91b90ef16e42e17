"""A tiny SST-2 that can be learnt, a tiny SQuAD, and the settings to fine-tune on them quickly."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from orchestrator.config import FinetuneSettings
from tests.conftest import SENTENCE

WORDS = SENTENCE.split()
QUICK = FinetuneSettings(
    learning_rates=(1e-2, 1e-6), epochs=(10.0,), seeds=2, batch_size=16, max_length=16
)
BRIEF = QUICK.model_copy(update={"learning_rates": (1e-2,), "max_steps": 2})
COUNTS = {"train": 192, "dev": 40, "test": 10}


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """A dog in front makes a sentence positive."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = [word for word in rng.choices(WORDS, k=6) if word != "dog"]
        rows.append((" ".join(["dog", *words] if number % 2 else words), number % 2))
    return rows


def write_sst2(folder: Path, *, counts: Mapping[str, int] = COUNTS, turned: bool = False) -> Path:
    """SST-2 in GLUE's own format; turned: with all labels wrong. Gives the folder."""
    for split, count in counts.items():
        path = folder / "SST-2" / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True, parents=True)
        if split == "test":
            lines = [f"{i}\t{text}" for i, (text, _) in enumerate(sentences(count, 9))]
            path.write_text("index\tsentence\n" + "\n".join(lines) + "\n")
        else:
            rows = sentences(count, len(split))
            lines = [f"{text}\t{1 - label if turned else label}" for text, label in rows]
            path.write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return folder


def write_squad(folder: Path) -> Path:
    """SQuAD 2.0 with four questions, of which one has no answer; gives the folder."""
    context = " ".join(WORDS)
    questions: list[dict[str, Any]] = [
        {
            "id": f"q{number}",
            "question": "what does it say ?",
            "answers": [{"text": word, "answer_start": context.index(word)}],
            "is_impossible": False,
        }
        for number, word in enumerate(WORDS[:3])
    ]
    questions.append({"id": "q3", "question": "why not ?", "answers": [], "is_impossible": True})
    articles = [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]
    (folder / "squad").mkdir(parents=True)
    for split in ("train", "dev"):
        text = json.dumps({"version": "v2.0", "data": articles})
        (folder / "squad" / f"{split}-v2.0.json").write_text(text)
    return folder


def save_bert(folder: Path, tokenizer_of: Path, *, positions: int) -> Path:
    """A BERT of one layer with the tokenizer of another model; gives the folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tokenizer_of))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder
