"""Found model against RoBERTa-like and ELECTRA-like baselines, pre-trained alike, on GLUE.

    python -m benchmarks.downstream [--quick] [--work DIR]

On $MAGIC_NAS_DATA: a super-net is trained on `books_pd`, searched, and the best child retrained.
The baselines have as many parameters (within 2 %) and are pre-trained on the same tokens, with the
same steps, batches and schedule: RoBERTa and ELECTRA as published, and both with the attention of
the searched space, which knows distances (`_relative`). All are fine-tuned on seven GLUE tasks by
one recipe (learning rate chosen on the dev split by the first seed, then every seed), and so is the
found architecture from random weights on SST-2. Differences are paired by seed; intervals are
t-intervals over fine-tuning seeds, for one pre-training each.

A baseline that did not come 0.5 nats below the training unigrams in pre-training (ELECTRA: its
generator), or tells replaced tokens no better than by their share, has not learnt: nothing is
compared with it, and `valid` is false for it.

Takes some hours on two cores; goes on where it stopped, from the folder given with --work.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from benchmarks.record import RESULTS, write_record
from orchestrator import run
from orchestrator.config import Config, FinetuneSettings, parse
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.sources import model_source
from orchestrator.finetuning.summary import interval, read_rows
from orchestrator.learnt import LEARNT_NATS, tells_replaced
from orchestrator.runinfo import read_info
from orchestrator.runs import Run
from orchestrator.store import RunStore

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")
FOUND = "found"
BASELINES = ("roberta", "electra", "roberta_relative", "electra_relative")
OF_SEARCH = "roberta_relative"
"""The hand-made baseline of the searched space, which the run retrains beside the best child."""
HIDDEN, DEPTH = 128, 4
"""Of the baselines: width, and Transformer layers, each attention and feed-forward."""
ATTENTION = {"kind": "attention", "heads": 4, "relative_reach": 16}
FEED_FORWARD = {"kind": "feed_forward", "inner_size": 4 * HIDDEN}
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
    """Super-net, search and retraining; the limits are the baselines' size, within 1 %."""
    return parse(
        {
            **_base(quick=quick),
            "space": {
                "layers": 12,
                "hidden_size": HIDDEN,
                "candidates": {
                    "attention": ATTENTION,
                    "feed_forward": FEED_FORWARD,
                    "conv3": {"kind": "separable_conv", "kernel_size": 3},
                    "conv7": {"kind": "separable_conv", "kernel_size": 7},
                    "identity": {"kind": "identity"},
                },
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
    """A space of one path: training its super-net is pre-training the baseline."""
    published, _, relative = name.partition("_")
    objective = "replaced_tokens" if published == "electra" else "masked_lm"
    named = {"named": f"{published}_base", "layers": DEPTH, "hidden_size": HIDDEN, "heads": 4}
    by_distance = {
        "layers": 2 * DEPTH,
        "hidden_size": HIDDEN,
        "candidates": {"attention": ATTENTION, "feed_forward": FEED_FORWARD},
        "per_layer": {
            layer: ["feed_forward" if layer % 2 else "attention"] for layer in range(2 * DEPTH)
        },
    }
    return parse(
        {
            **_base(quick=quick),
            "pretraining": {"objective": objective, "generator_size": 0.5},
            "space": by_distance if relative else named,
            "train": {
                **RECIPE,
                "sampler": {"name": "uniform"},
                "workers": 1,
                "probe_paths": 1,
                "probe_sequences": 256,
                "collapsed_within_nats": None,
                **(QUICK if quick else {}),
            },
        }
    )


def settings(*, quick: bool, pretrained: bool = True) -> FinetuneSettings:
    """The fine-tuning recipe, the same for all models and tasks."""
    return FinetuneSettings(
        learning_rates=(3e-4,) if quick else (2e-4, 5e-4),
        epochs=(3.0,),
        seeds=2 if quick else 5,
        max_steps=20 if quick else 2000,
        pretrained=pretrained,
        keep_models=False,
    )


def pretrain(work: Path, *, quick: bool) -> dict[str, str]:
    """Pre-train all models; returns what `finetune` calls them."""
    stages = ("data", "train", "search", "retrain")
    run(found_config(quick=quick), out=work / FOUND, only=stages)
    models = {FOUND: f"{work / FOUND}@best", OF_SEARCH: f"{work / FOUND}@baseline"}
    for name in BASELINES:
        if name == OF_SEARCH:
            continue
        config = baseline_config(name, quick=quick)
        run(config, out=work / name, only=("data", "train"))
        path = config.space.build().layers
        models[name] = f"{work / name}@{'-'.join(names[0] for names in path)}"
    return models


def tune(work: Path, models: Mapping[str, str], *, quick: bool) -> pd.DataFrame:
    """Fine-tune all; one row per model, task, recipe and seed."""
    data, out = f"{os.environ['MAGIC_NAS_DATA']}/glue", work / "glue"
    recipe, scratch = (settings(quick=quick, pretrained=known) for known in (True, False))
    for model in models.values():
        finetune(model, TASKS, data=data, out=out, settings=recipe)
    summary = finetune(models[FOUND], ["sst2"], data=data, out=out, settings=scratch)
    store = RunStore(out)
    names = {model_source(store, model).digest: name for name, model in models.items()}
    chosen = {name for result in summary["results"] for name in result["names"]}
    # An earlier model's, or of other settings, may be there.
    rows = [
        row
        for row in read_rows(store)
        if row["model_digest"] in names
        and (row["max_steps"], row["epochs"]) == (recipe.max_steps, recipe.epochs[0])
    ]
    frame = pd.DataFrame(rows)
    frame["model"] = [
        names[row["model_digest"]] + ("" if row["pretrained"] else " (random weights)")
        for row in rows
    ]
    frame["chosen"] = frame["name"].isin(chosen)
    frame["scores"] = [json.dumps(row.get("scores")) for row in rows]
    return frame.drop(columns=["name", "model_digest", "start", "teacher"])


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
    for name in BASELINES:
        if name == OF_SEARCH:
            continue
        supernet = read_info(RunStore(work / name))["supernet"]
        found[name] = {
            "loss_nats": supernet.get("generator_loss_nats", supernet["probe_loss_nats"]),
            "unigram_nats": supernet["unigram_nats"],
        }
        if "replaced_entropy_nats" in supernet:
            found[name] |= {
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


def compare(frame: pd.DataFrame, pretraining: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Scores x 100: means by model and task, differences to each baseline with intervals."""
    scores = final(frame)
    valid = {name: has_learnt(pretraining[name]) for name in BASELINES}
    compared = [name for name in BASELINES if valid[name]]
    found, scratch = scores[FOUND], scores.get(f"{FOUND} (random weights)", {})
    return {
        "valid": valid,
        "pretraining": dict(pretraining),
        "num_params": dict(
            zip(frame["model"], frame["num_params"].astype(int).tolist(), strict=True)
        ),
        "scores": {
            model: {task: _stats(list(seeds.values())) for task, seeds in tasks.items()}
            for model, tasks in scores.items()
        },
        "mean": {
            name: _stats(list(_mean_of_tasks(scores[name]).values())) for name in (FOUND, *compared)
        },
        **{f"over_{name}": _difference(found, scores[name]) for name in compared},
        "over_random_weights_sst2": _stats(_paired(found.get("sst2", {}), scratch.get("sst2", {}))),
    }


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
    models = pretrain(work, quick=options.quick)
    pretraining = learnt(work)
    compared = {
        name: model
        for name, model in models.items()
        if name == FOUND or has_learnt(pretraining[name])
    }
    frame = tune(work, compared, quick=options.quick)
    results = compare(frame, pretraining)
    _print(results)
    results |= {"architecture": _architecture(work), "quick": options.quick}
    if not options.quick:
        frame.to_parquet(RESULTS / "downstream.parquet", index=False)
        write_record("downstream", results, seeds={"pretraining": 0, "finetuning": [0, 1, 2, 3, 4]})
    print(json.dumps(results))


def _architecture(work: Path) -> str:
    info = read_info(Run.open(work / FOUND).store)
    (best,) = [model for model in info["models"] if model["name"] == "best"]
    return str(best["architecture"])


def _print(results: Mapping[str, Any]) -> None:
    print(f"{'':<18}" + "".join(f"{task:>8}" for task in (*TASKS, "mean")))
    for name, mean_of_tasks in results["mean"].items():
        cells = [results["scores"][name].get(task, _stats([])) for task in TASKS]
        cells.append(mean_of_tasks)
        print(f"{name:<18}" + "".join(f"{_number(cell['estimate']):>8}" for cell in cells))
    for name, valid in results["valid"].items():
        if not valid:
            print(f"Nothing is compared with {name}: it did not learn in pre-training")
            continue
        for what, cell in results[f"over_{name}"].items():
            print(f"found over {name:<18} {what:<6} {_text(cell)}")
    print(f"sst2 over random weights   {_text(results['over_random_weights_sst2'])}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _text(cell: Mapping[str, Any]) -> str:
    if cell["interval"] is None:
        return _number(cell["estimate"])
    low, high = cell["interval"]
    return f"{cell['estimate']:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
