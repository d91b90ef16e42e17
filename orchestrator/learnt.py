"""Whether models have learnt: the bars that they come to in training, and what is said if not.

A model that predicts masked tokens is held against the unigrams of the training text on the same
targets. One that tells replaced tokens has a generator for which that bar is, and is itself held
against the entropy of how many are replaced.
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.runinfo import update_info
from orchestrator.runs import Run
from supernet.data.masking import unigram_nats
from supernet.errors import SuperNetCollapsed

LEARNT_NATS = 0.5
"""A model has learnt if it is this far below the unigrams' cross-entropy; our own bar.

For replaced tokens that bar is for the model's generator.
"""
LEARNT_SHARE = 0.02
"""One that tells replaced tokens has learnt if its loss is by this share below the entropy of how
many are replaced, which one that looks at no token would have; our own bar."""

GENERATOR_FIGURES = ("generator_loss_nats", "replaced_entropy_nats")


def tells_replaced(loss: float, figures: Mapping[str, float]) -> bool:
    """Whether a discriminator has learnt, by `LEARNT_SHARE`."""
    return loss < (1 - LEARNT_SHARE) * figures["replaced_entropy_nats"]


def check_learnt(run: Run) -> None:
    """Record how far the probe paths came below the unigrams; too little is a collapse.

    For replaced tokens it is their generator that is compared with the unigrams, and the probe
    paths with the entropy of the share of replaced tokens.
    """
    settings = run.config.train
    last = [row for row in run.store.rows("probe") if row["step"] == settings.steps]
    losses = {row["architecture"]: row["val_loss_nats"] for row in last}
    if not losses:
        return
    probe_loss = sum(losses.values()) / len(losses)
    figures = {name: last[-1][name] for name in GENERATOR_FIGURES if name in last[-1]}
    loss = figures.get("generator_loss_nats", probe_loss)
    learner = "its generator" if figures else "its probe paths"
    unigram = unigram_nats(
        run.data_folder, "valid", num_sequences=settings.probe_sequences, seed=run.config.seed
    )
    margin = settings.collapsed_within_nats
    collapsed = margin is not None and not loss < unigram - margin
    blind = margin is not None and bool(figures) and not tells_replaced(probe_loss, figures)
    update_info(
        run.store,
        supernet={
            "probe_loss_nats": probe_loss,
            "unigram_nats": unigram,
            "collapsed": collapsed or blind,
            **figures,
        },
    )
    if collapsed:
        raise SuperNetCollapsed(
            f"the super-net has collapsed: {learner} must end {margin} nats below the training "
            f"unigrams ({unigram:.3f} nats on the same targets), but {'is' if figures else 'are'} "
            f"at {loss:.3f} nats on average: train longer, or lower train.align.weight if "
            f"alignment is on, and give another output folder"
        )
    if blind:
        raise SuperNetCollapsed(
            f"the super-net has collapsed: its probe paths must tell replaced tokens by a loss "
            f"below {1 - LEARNT_SHARE:.2f} times what their share alone gives "
            f"({figures['replaced_entropy_nats']:.4f} nats), but are at {probe_loss:.4f} nats on "
            f"average: lower train.learning_rate or train longer, and give another output folder"
        )


def record_comparison(run: Run, results: list[dict[str, Any]]) -> None:
    """Record the models, and whether best and baseline have learnt enough to be compared."""
    unigram = {
        split: unigram_nats(run.data_folder, split, num_sequences=sequences, seed=run.config.seed)
        for split, sequences in (
            ("valid", run.config.search.valid_sequences),
            ("test", run.config.retrain.test_sequences),
        )
    }
    reason = not_learnt(results, unigram["test"])
    by_generator = run.config.pretraining.objective == "replaced_tokens"
    learners = f"{'the generators of ' if by_generator else ''}best child and baseline"
    update_info(
        run.store,
        models=results,
        unigram_nats=unigram,
        comparison={
            "valid": reason is None,
            "reason": reason
            or f"{learners} are {LEARNT_NATS} nats or more below the training unigrams",
        },
    )


def not_learnt(results: list[dict[str, Any]], unigram: float) -> str | None:
    """Why best child and baseline cannot be compared, by the loss that unigrams have too."""
    losses = {
        (
            f"{result['name']}'s generator" if "generator_loss_nats" in result else result["name"]
        ): result.get("generator_loss_nats", result["test_loss_nats"])
        for result in results
        if result["name"] in ("best", "baseline")
    }
    bar = unigram - LEARNT_NATS
    unlearnt = [f"{name} ({loss:.3f} nats)" for name, loss in losses.items() if loss > bar]
    if unlearnt:
        return (
            f"{' and '.join(unlearnt)} did not come {LEARNT_NATS} nats below the training unigrams "
            f"({unigram:.3f} nats) on the test targets: train longer"
        )
    blind = [
        f"{result['name']} ({result['test_loss_nats']:.4f} nats)"
        for result in results
        if result["name"] in ("best", "baseline")
        and "replaced_entropy_nats" in result
        and not tells_replaced(result["test_loss_nats"], result)
    ]
    if blind:
        return (
            f"{' and '.join(blind)} cannot tell replaced tokens better than their share does: "
            f"lower retrain.learning_rate or train longer"
        )
    return None
