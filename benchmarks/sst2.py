"""Whether pre-training helps the found model on SST-2: against the same one from random weights.

    python -m benchmarks.sst2 [--quick] [--work DIR]

On all of SST-2 in $MAGIC_NAS_DATA, with the model of `benchmarks.found_model`. Both by one recipe:
the learning rate, of two, is chosen on the dev split by the first seed, each for itself, then
twenty seeds are run. Accuracy on dev, x 100; the difference is paired by seed, which sets the order
of the examples, the head and, where nothing is pre-trained, all weights. Intervals are t-intervals
over these seeds, for one pre-training.

Takes some hours on two cores; goes on where it stopped, from the folder given with --work.
"""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.found_model import found_model
from benchmarks.found_study import only, options_of, stats, write_rows
from benchmarks.record import RESULTS, provenance, write_record
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.summary import read_rows
from orchestrator.store import RunStore

SEEDS = 20
ARMS = {"random_weights": False, "pretrained": True}


def settings(*, pretrained: bool, quick: bool) -> FinetuneSettings:
    """The recipe, with or without the model's weights."""
    return FinetuneSettings(
        learning_rates=(2e-4, 5e-4),
        epochs=(5.0,),
        seeds=2 if quick else SEEDS,
        max_length=128,
        max_steps=10 if quick else 3000,
        pretrained=pretrained,
        keep_models=False,
    )


def tune(model: str, out: Path, *, quick: bool) -> dict[str, Any]:
    """Fine-tune both; scores x 100, learning rate and steps of each, and the difference.

    Raises:
        InvalidInput: if the folder holds rows of another model or recipe.
    """
    data = f"{os.environ['MAGIC_NAS_DATA']}/glue"
    for known in ARMS.values():
        recipe = settings(pretrained=known, quick=quick)
        summary = finetune(model, ["sst2"], data=data, out=out, settings=recipe)
    rows = {row["name"]: row for row in read_rows(RunStore(out))}
    found: dict[str, dict[str, Any]] = {}
    by_seed: dict[str, dict[int, float]] = {}
    for arm, known in ARMS.items():
        results = [result for result in summary["results"] if result["pretrained"] == known]
        chosen = [rows[name] for name in only(results, out)["names"]]
        by_seed[arm] = {
            row["seed"]: 100 * row["headline"] for row in chosen if row["error"] is None
        }
        steps, rate = chosen[0]["steps"], chosen[0]["learning_rate"]
        found[arm] = {**stats(by_seed[arm]), "learning_rate": rate, "steps": steps}
    both = sorted(set(by_seed["pretrained"]) & set(by_seed["random_weights"]))
    difference = {
        seed: by_seed["pretrained"][seed] - by_seed["random_weights"][seed] for seed in both
    }
    return {**found, "difference": stats(difference)}


def main() -> None:
    """Run it."""
    options = options_of(__doc__, "runs/sst2")
    work, quick = options.work, options.quick
    origin = provenance(seeds={"pretraining": 0, "finetuning": list(range(SEEDS))})
    model, learnt = found_model(work / "found_model")
    results = tune(model, work / "finetuned", quick=quick) | {"pretraining": learnt, "quick": quick}
    for name in (*ARMS, "difference"):
        cell = results[name]
        inside = "–" if cell["interval"] is None else "[{:+.2f}, {:+.2f}]".format(*cell["interval"])
        print(f"{name:<16}{cell['mean']:+8.2f}  {inside}  {len(cell['values'])} seeds")
    folder = work if quick else RESULTS
    write_rows(folder / "sst2.parquet", sst2=work / "finetuned")
    write_record("sst2", results, origin=origin, folder=folder)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
