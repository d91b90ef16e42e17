"""SQuAD by the found model: fine-tuned at once, and after questions made of plain text.

    python -m benchmarks.squad [--quick] [--work DIR]

On $MAGIC_NAS_DATA, with the model of `benchmarks.found_model`. Twice, from the same weights, by one
learning rate:

- `at_once`: on the training questions.
- `after_clozes`: first on questions made of the training articles' own text and of books
  (`benchmarks/cloze.py`; nothing of the dev split is trained on), then on the training
  questions.

Exact match and F1 on dev, x 100, mean of the seeds with their t-interval, beside the trivial
baseline's. The first stage is trained with one seed. Rates, epochs and seeds are fixed here.

Takes some hours on two cores; goes on where it stopped, from the folder given with --work.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cloze import write_clozes
from benchmarks.found_model import found_model
from benchmarks.found_study import only, options_of, stats, write_rows
from benchmarks.record import RESULTS, provenance, write_record
from evaluators.downstream.squad import read_questions
from evaluators.downstream.squad_metric import trivial_squad
from evaluators.downstream.tasks import TASKS
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.summary import read_rows
from orchestrator.store import RunStore

SQUAD = TASKS["squad"]
LEARNING_RATE = 5e-4
CLOZES = {"per_passage": 20, "book_passages": 12_000, "per_book_passage": 4, "seed": 0}
EPOCHS = {"clozes": 1.0, "after_clozes": 4.0, "at_once": 8.0}
"""One of clozes and four of questions are 6,404 steps, eight of questions 5,520."""
SEEDS = {"clozes": 1, "after_clozes": 3, "at_once": 1}


def settings(stage: str, *, quick: bool) -> FinetuneSettings:
    """The recipe of a stage."""
    return FinetuneSettings(
        learning_rates=(LEARNING_RATE,),
        epochs=(EPOCHS[stage],),
        seeds=SEEDS[stage],
        max_length=128,
        max_steps=10 if quick else None,
    )


def make_clozes(folder: Path, *, quick: bool) -> int:
    """A folder in SQuAD's layout whose training questions are clozes; returns how many.

    The dev split is the real one: what the first stage alone comes to is of interest, and nothing
    is chosen by it.
    """
    data = Path(os.environ["MAGIC_NAS_DATA"])
    articles: dict[str, list[str]] = {}
    for question in read_questions(SQUAD, data, "train"):
        contexts = articles.setdefault(question.title, [])
        if question.context not in contexts:
            contexts.append(question.context)
    lines = (data / "corpus" / "books_pd" / "train.txt").read_text().splitlines()
    sizes = CLOZES | ({"per_passage": 1, "book_passages": 50} if quick else {})
    count = write_clozes(folder / "squad" / "train-v1.1.json", articles, lines, **sizes)
    dev = folder / "squad" / "dev-v1.1.json"
    dev.write_bytes((data / "squad" / "xquad.en.json").read_bytes())
    return count


def tune(stage: str, model: str, data: str, out: Path, *, quick: bool) -> dict[str, Any]:
    """Fine-tune and score; scores x 100 of every seed, their mean and interval.

    Raises:
        InvalidInput: if the folder holds rows of another model or recipe.
    """
    recipe = settings(stage, quick=quick)
    summary = finetune(model, ["squad"], data=data, out=out, settings=recipe)
    result = only(summary["results"], out)
    rows = [row for row in read_rows(RunStore(out)) if row["name"] in result["names"]]
    return {
        "seeds": len(rows),
        "epochs": recipe.epochs[0],
        "steps": rows[0]["steps"],
        **{metric: _scores(rows, metric) for metric in ("exact_match", "f1")},
    }


def _scores(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return stats({row["seed"]: 100 * row["scores"][metric] for row in rows})


def trained_model(out: Path) -> str:
    """The folder of the one model that a stage kept."""
    (model,) = sorted((out / "finetuned" / "squad").iterdir())
    return str(model)


def trivial() -> dict[str, Any]:
    """The baseline that learns nothing, and its rule."""
    data = os.environ["MAGIC_NAS_DATA"]
    train, dev = (read_questions(SQUAD, data, split) for split in ("train", "dev"))
    found = trivial_squad(SQUAD, train, dev)
    return {"rule": found.rule, **{name: 100 * value for name, value in found.scores.items()}}


def main() -> None:
    """Run it."""
    options = options_of(__doc__, "runs/squad")
    work, quick, data = options.work, options.quick, os.environ["MAGIC_NAS_DATA"]
    seeds = list(range(max(SEEDS.values())))
    origin = provenance(seeds={"pretraining": 0, "finetuning": seeds, "clozes": 0})
    made = make_clozes(work / "questions", quick=quick)
    model, learnt = found_model(work / "found_model")
    results: dict[str, Any] = {"trivial": trivial(), "pretraining": learnt}
    results |= {"questions_made": made, "quick": quick}
    results["clozes"] = tune("clozes", model, str(work / "questions"), work / "clozes", quick=quick)
    prepared = trained_model(work / "clozes")
    results["after_clozes"] = tune(
        "after_clozes", prepared, data, work / "after_clozes", quick=quick
    )
    results["at_once"] = tune("at_once", model, data, work / "at_once", quick=quick)
    _print(results)
    folder = work if quick else RESULTS
    write_rows(folder / "squad.parquet", **{stage: work / stage for stage in EPOCHS})
    write_record("squad", results, origin=origin, folder=folder)
    print(json.dumps(results))


def _print(results: Mapping[str, Any]) -> None:
    print(f"{'':<14}{'seeds':>6}{'steps':>7}{'exact match':>13}{'F1':>7}  95 % interval of F1")
    low = results["trivial"]
    print(f"{'trivial':<27}{low['exact_match']:>13.1f}{low['f1']:>7.1f}  {low['rule']}")
    for stage in EPOCHS:
        cell = results[stage]
        inside = cell["f1"]["interval"]
        text = "–" if inside is None else f"[{inside[0]:.1f}, {inside[1]:.1f}]"
        print(
            f"{stage:<14}{cell['seeds']:>6}{cell['steps']:>7}"
            f"{cell['exact_match']['mean']:>13.1f}{cell['f1']['mean']:>7.1f}  {text}"
        )


if __name__ == "__main__":
    main()
