"""Found model against RoBERTa-like and ELECTRA-like baselines, pre-trained alike, on seven tasks.

    python -m benchmarks.downstream [--quick] [--work DIR]

On $MAGIC_NAS_DATA: a super-net is trained on `books_pd`, searched, and the best child retrained.
The baselines have as many parameters (within 2 %; ELECTRA's generator, half as wide, comes on top)
and are pre-trained on the same tokens, with the same vocabulary, steps, batches and schedule:

- `roberta`, `electra`: four layers with absolute positions, as published.
- `roberta_relative`: the space's own Transformer, which the run retrains beside the best child. Its
  attention knows distances, and it has BERT's two token types.
- `electra_relative`: the same as a discriminator; its generator's attention knows distances, too.

The search itself (super-net and scoring) is on top of the found model's pre-training.

All are fine-tuned by one recipe: the learning rate, of two, is chosen on the dev split by the first
seed, then every seed is run with it and reported, the first too; and so is the found architecture
from random weights on SST-2. The tasks are GLUE's in their formats, not all with GLUE's splits:
`data` says how many rows each has and what stands in for a split. So the mean is not GLUE's.

Differences are paired by seed; intervals are t-intervals over fine-tuning seeds, for one
pre-training each, and not corrected for their number. `at_trivial` counts seeds that ended no
better than the most frequent label (STS-B: the mean).

A baseline that did not come 0.5 nats below the training unigrams in pre-training (ELECTRA: its
generator), or tells replaced tokens no better than by their share, has not learnt: nothing is
compared with it, and `valid` is false for it. With --quick none learns, and all are compared.

Takes some hours on two cores; goes on where it stopped, from the folder given with --work.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

from benchmarks.record import RESULTS, provenance, write_record
from evaluators.downstream.reading import read_task
from evaluators.downstream.tasks import TASKS as TASKS_BY_NAME
from orchestrator import run
from orchestrator.config import Config, FinetuneSettings, parse
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.sources import model_source
from orchestrator.finetuning.summary import CHOICES, interval, read_rows, summarise
from orchestrator.learnt import LEARNT_NATS, tells_replaced
from orchestrator.runinfo import read_info
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.errors import TrainingDiverged

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")
FOUND = "found"
BASELINES = ("roberta", "electra", "roberta_relative", "electra_relative")
OF_SEARCH = "roberta_relative"
"""The hand-made baseline of the searched space, which the run retrains beside the best child."""
PRETRAINED = tuple(name for name in BASELINES if name != OF_SEARCH)
RANDOM = " (random weights)"
SAME = (
    *("max_length", "max_steps", "batch_size", "warmup_fraction", "weight_decay", "clip_norm"),
    *("precision", "pooling"),
)
"""What a row must share with the recipe."""
ROUNDING = 1e-9
HIDDEN, DEPTH = 128, 4
"""Of the baselines: width, and Transformer layers, each attention and feed-forward."""
ATTENTION = {"kind": "attention", "heads": 4, "relative_reach": 16}
CANDIDATES = {
    "attention": ATTENTION,
    "feed_forward": {"kind": "feed_forward", "inner_size": 4 * HIDDEN},
    "conv3": {"kind": "separable_conv", "kernel_size": 3},
    "conv7": {"kind": "separable_conv", "kernel_size": 7},
    "identity": {"kind": "identity"},
}
"""Of the searched space."""
RECIPE = {
    "steps": 4000,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 300,
    "checkpoint_steps": 500,
}
"""Of stand-alone pre-training, for all models."""
QUICK = {"steps": 60, "warmup_steps": 10, "checkpoint_steps": 60}


def _base(*, quick: bool) -> dict[str, Any]:
    corpus = Path(os.environ["MAGIC_NAS_DATA"]) / "corpus" / "books_pd"
    data: dict[str, Any] = {
        "source": str(corpus),
        "vocab_size": 8192,
        "sequence_length": 128,
        **({"max_mb": 1.0} if quick else {}),
    }
    return {"seed": 0, "data": data}


def found_config(*, quick: bool) -> Config:
    """Super-net, search and retraining; the limits are the baselines' size, within 2 %."""
    return parse(
        {
            **_base(quick=quick),
            "space": {
                "layers": 12,
                "hidden_size": HIDDEN,
                "candidates": CANDIDATES,
            },
            "train": {
                **RECIPE,
                "sampler": {"name": "magic_t"},
                "align": {"weight": 1.0},
                "workers": 2,
                "steps": 6000,
                **(QUICK | {"collapsed_within_nats": None} if quick else {}),
            },
            "search": {
                "searcher": {"name": "evolution", "population": 50, "sample": 10},
                "candidates": 20 if quick else 300,
                "limits": "1.865e6 <= num_params <= 1.902e6",
                "valid_sequences": 64 if quick else 256,
                "batch_size": 10,
            },
            "retrain": {**RECIPE, "controls": 0, **(QUICK if quick else {})},
        }
    )


def baseline_config(name: str, *, quick: bool) -> Config:
    """Training its super-net, of one path, is pre-training the baseline."""
    published, _, relative = name.partition("_")
    objective = "replaced_tokens" if published == "electra" else "masked_lm"
    named = {"named": f"{published}_base", "layers": DEPTH, "hidden_size": HIDDEN, "heads": 4}
    by_distance = _one_path(["attention", "feed_forward"] * DEPTH)
    return parse(
        {
            **_base(quick=quick),
            "pretraining": {
                "objective": objective,
                "generator_size": 0.5,
                "generator_relative_reach": ATTENTION["relative_reach"] if relative else 0,
            },
            "space": by_distance if relative else named,
            "train": _alone(quick=quick),
        }
    )


def architecture_config(architecture: str, *, quick: bool) -> Config:
    """Training the super-net of this one path is pre-training it, by the recipe of all models."""
    return parse(
        {
            **_base(quick=quick),
            "space": _one_path(architecture.split("-")),
            "train": _alone(quick=quick) | {"workers": 2},
        }
    )


def _one_path(operators: Sequence[str]) -> dict[str, Any]:
    return {
        "layers": len(operators),
        "hidden_size": HIDDEN,
        "candidates": {name: CANDIDATES[name] for name in dict.fromkeys(operators)},
        "per_layer": {layer: [name] for layer, name in enumerate(operators)},
    }


def _alone(*, quick: bool) -> dict[str, Any]:
    return {
        **RECIPE,
        "sampler": {"name": "uniform"},
        "workers": 1,
        "probe_paths": 1,
        "probe_sequences": 256,
        "collapsed_within_nats": None,
        **(QUICK if quick else {}),
    }


def settings(*, quick: bool, pretrained: bool = True) -> FinetuneSettings:
    """The fine-tuning recipe, the same for all models and tasks."""
    return FinetuneSettings(
        learning_rates=(3e-4,) if quick else (2e-4, 5e-4),
        epochs=(3.0,),
        seeds=2 if quick else 5,
        max_length=128,
        max_steps=20 if quick else 2000,
        pretrained=pretrained,
        keep_models=False,
    )


def pretrain(work: Path, *, quick: bool) -> dict[str, str]:
    """Pre-train all models; returns what `finetune` calls them."""
    stages = ("data", "train", "search", "retrain")
    run(found_config(quick=quick), out=work / FOUND, only=stages)
    models = {FOUND: f"{work / FOUND}@best", OF_SEARCH: f"{work / FOUND}@baseline"}
    for name in PRETRAINED:
        config = baseline_config(name, quick=quick)
        run(config, out=work / name, only=("data", "train"))
        path = config.space.build().layers
        models[name] = f"{work / name}@{'-'.join(names[0] for names in path)}"
    return models


def tune(work: Path, models: Mapping[str, str], *, quick: bool) -> pd.DataFrame:
    """Fine-tune all; one row per model, task, recipe and seed, with which were chosen."""
    out = work / "glue"
    recipe, scratch = (settings(quick=quick, pretrained=known) for known in (True, False))
    for model in models.values():
        _tune(model, TASKS, out, recipe)
    _tune(models[FOUND], ["sst2"], out, scratch)
    store = RunStore(out)
    names = {model_source(store, model).digest: name for name, model in models.items()}
    done = read_rows(store)
    rows = [row for row in done if _is_of(row, names, recipe)]
    if others := len(done) - len(rows):
        print(f"{others} rows of {out} are of other models or recipes, and left out")
    results = summarise(done, store.rows(CHOICES))["results"]
    chosen = {
        name for result in results if _is_of(result, names, recipe) for name in result["names"]
    }
    frame = pd.DataFrame(rows)
    frame["model"] = [
        names[row["model_digest"]] + ("" if row["pretrained"] else RANDOM) for row in rows
    ]
    frame["chosen"] = frame["name"].isin(chosen)
    frame["scores"] = [json.dumps(row.get("scores")) for row in rows]
    return frame.drop(columns=["name", "model_digest", "start", "teacher"])


def _tune(model: str, tasks: Sequence[str], out: Path, recipe: FinetuneSettings) -> None:
    """A task that diverges with every seed is a result, too."""
    try:
        finetune(model, tasks, data=_glue(), out=out, settings=recipe)
    except TrainingDiverged as error:
        print(f"{model}: {error}")


def _is_of(row: Mapping[str, Any], names: Mapping[str, str], recipe: FinetuneSettings) -> bool:
    """Whether a row, or what several come to, is of these models and this recipe."""
    same = all(row[key] == getattr(recipe, key) for key in SAME if key in row)
    grid = row["learning_rate"] in recipe.learning_rates and row["epochs"] in recipe.epochs
    return row["model_digest"] in names and same and grid and not (row["start"] or row["teacher"])


def data_used() -> dict[str, dict[str, Any]]:
    """Rows per split and task, and what stands in for a split."""
    read = {task: read_task(TASKS_BY_NAME[task], _glue()) for task in TASKS}
    return {
        task: {
            "train": len(data.train),
            "dev": len(data.dev["dev"]),
            "stand_in": data.stand_in,
        }
        for task, data in read.items()
    }


def _glue() -> str:
    return f"{os.environ['MAGIC_NAS_DATA']}/glue"


def learnt(work: Path) -> dict[str, dict[str, float]]:
    """What each model came to in pre-training, in nats, beside what nothing learnt comes to."""
    info = read_info(RunStore(work / FOUND))
    found = {
        {"best": FOUND, "baseline": OF_SEARCH}[model["name"]]: {
            "loss_nats": model["test_loss_nats"],
            "unigram_nats": info["unigram_nats"]["test"],
        }
        for model in info["models"]
    }
    return found | {name: learnt_alone(work / name) for name in PRETRAINED}


def learnt_alone(folder: Path) -> dict[str, float]:
    """The same of one model whose super-net it is."""
    supernet = read_info(RunStore(folder))["supernet"]
    found: dict[str, float] = {
        "loss_nats": supernet.get("generator_loss_nats", supernet["probe_loss_nats"]),
        "unigram_nats": supernet["unigram_nats"],
    }
    if "replaced_entropy_nats" in supernet:
        found |= {
            "replaced_loss_nats": supernet["probe_loss_nats"],
            "replaced_entropy_nats": supernet["replaced_entropy_nats"],
        }
    return found


def has_learnt(figures: Mapping[str, float]) -> bool:
    """Whether a baseline may be compared with; see the module."""
    tells = "replaced_loss_nats" not in figures or tells_replaced(
        figures["replaced_loss_nats"], figures
    )
    return tells and figures["unigram_nats"] - figures["loss_nats"] >= LEARNT_NATS


Seeds = dict[int, float]


def final(frame: pd.DataFrame) -> dict[str, dict[str, Seeds]]:
    """Headline x 100 by model, task and seed, each at the recipe that was chosen."""
    scores: dict[str, dict[str, Seeds]] = {}
    for row in frame[frame["error"].isna() & frame["chosen"]].to_dict("records"):
        seeds = scores.setdefault(row["model"], {}).setdefault(row["task"], {})
        seeds[row["seed"]] = 100 * row["headline"]
    return scores


def compare(
    frame: pd.DataFrame, pretraining: Mapping[str, Mapping[str, float]], *, quick: bool = False
) -> dict[str, Any]:
    """Scores x 100: means by model and task, differences to each baseline with intervals."""
    scores = final(frame)
    valid = {name: has_learnt(pretraining[name]) for name in BASELINES}
    compared = [name for name in BASELINES if valid[name] or quick]
    found, scratch = scores.get(FOUND, {}), scores.get(FOUND + RANDOM, {})
    return {
        "valid": valid,
        "pretraining": dict(pretraining),
        "num_params": frame.groupby("model")["num_params"].max().astype(int).to_dict(),
        "scores": _cells(frame, scores),
        "mean": {
            name: _stats(list(_mean_of_tasks(scores.get(name, {})).values()))
            for name in (FOUND, *compared)
        },
        **{f"over_{name}": _difference(found, scores.get(name, {})) for name in compared},
        "over_random_weights_sst2": _stats(_paired(found.get("sst2", {}), scratch.get("sst2", {}))),
    }


def _cells(
    frame: pd.DataFrame, scores: Mapping[str, Mapping[str, Seeds]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Of every model and task, with the recipe that was chosen and what is trivial."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for model, tasks in scores.items():
        for task, seeds in tasks.items():
            rows = frame[frame["chosen"] & (frame["model"] == model) & (frame["task"] == task)]
            trivial = 100 * float(rows["trivial"].max())
            cells.setdefault(model, {})[task] = {
                **_stats(list(seeds.values())),
                "median": median(seeds.values()),
                "trivial": trivial,
                "at_trivial": sum(score <= trivial + ROUNDING for score in seeds.values()),
                "learning_rate": float(rows["learning_rate"].max()),
                "steps": int(rows["steps"].max()),
            }
    return cells


def _difference(one: Mapping[str, Seeds], other: Mapping[str, Seeds]) -> dict[str, Any]:
    return {
        "mean": _stats(_paired(_mean_of_tasks(one), _mean_of_tasks(other))),
        **{task: _stats(_paired(one.get(task, {}), other.get(task, {}))) for task in TASKS},
    }


def _mean_of_tasks(scores: Mapping[str, Seeds]) -> Seeds:
    """By seed, over the tasks; seeds that diverged on a task are left out."""
    seeds = sorted(set.intersection(*(set(scores.get(task, {})) for task in TASKS)))
    return {seed: mean(scores[task][seed] for task in TASKS) for seed in seeds}


def _paired(one: Seeds, other: Seeds) -> list[float]:
    return [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]


def _stats(values: Sequence[float]) -> dict[str, Any]:
    estimate = mean(values) if values else None
    return {"estimate": estimate, "interval": interval(values), "seeds": len(values)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--work", default="runs/downstream", help="what was done lies here")
    options = parser.parse_args()
    work = Path(options.work).resolve()
    seeds = range(settings(quick=options.quick).seeds)
    origin = provenance(seeds={"pretraining": 0, "finetuning": list(seeds)})
    models = pretrain(work, quick=options.quick)
    pretraining = learnt(work)
    compared = {
        name: model
        for name, model in models.items()
        if name == FOUND or has_learnt(pretraining[name]) or options.quick
    }
    frame = tune(work, compared, quick=options.quick)
    results = compare(frame, pretraining, quick=options.quick) | {
        "data": data_used(),
        "architecture": _architecture(work),
        "pretrained_at": {name: _commit(work / name) for name in (FOUND, *PRETRAINED)},
        "quick": options.quick,
    }
    _print(results)
    folder = work if options.quick else RESULTS
    frame.to_parquet(folder / "downstream.parquet", index=False)
    write_record("downstream", results, origin=origin, folder=folder)
    print(json.dumps(results))


def _commit(folder: Path) -> str | None:
    commit: str | None = read_info(RunStore(folder)).get("commit")
    return commit


def _architecture(work: Path) -> str:
    info = read_info(Run.open(work / FOUND).store)
    (best,) = [model for model in info["models"] if model["name"] == "best"]
    return str(best["architecture"])


def _print(results: Mapping[str, Any]) -> None:
    print(f"{'':<18}" + "".join(f"{task:>8}" for task in (*TASKS, "mean")))
    for name, mean_of_tasks in results["mean"].items():
        cells = results["scores"].get(name, {})
        shown = [_score(cells.get(task)) for task in TASKS]
        shown.append(_number(mean_of_tasks["estimate"]))
        print(f"{name:<18}" + "".join(f"{text:>8}" for text in shown))
    print("* so many seeds ended no better than what is trivial:")
    of_found = results["scores"].get(FOUND, {})
    trivial = [_number(of_found.get(task, {}).get("trivial")) for task in TASKS]
    print(f"{'trivial':<18}" + "".join(f"{text:>8}" for text in trivial))
    for name, valid in results["valid"].items():
        if not valid:
            print(f"{name} did not learn in pre-training: not a valid comparison")
        for what, cell in results.get(f"over_{name}", {}).items():
            print(f"found over {name:<18} {what:<6} {_text(cell)}")
    print(f"sst2 over random weights   {_text(results['over_random_weights_sst2'])}")


def _score(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return _number(None)
    return _number(cell["estimate"]) + (f"*{cell['at_trivial']}" if cell["at_trivial"] else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _text(cell: Mapping[str, Any]) -> str:
    if cell["interval"] is None:
        return _number(cell["estimate"])
    low, high = cell["interval"]
    return f"{cell['estimate']:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
