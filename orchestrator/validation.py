"""What can be known to be wrong before data is read or a cluster is started."""

import os
import sys

from evaluators.latency import check_device
from orchestrator.config import Config
from orchestrator.finetuning.short import SCORE, check_short_finetuning
from orchestrator.limits import Limits
from orchestrator.objectives import Objectives
from orchestrator.runs import scoring_batch_size
from orchestrator.scoring import check_own_score
from orchestrator.searchers import build_searcher
from orchestrator.trackers import check_trackers
from supernet.alignment import check_layers
from supernet.errors import InvalidInput
from supernet.model import TextShape, meta_supernet
from supernet.sampler import build_sampler
from supernet.space import SearchSpace

METRICS = ("val_loss_nats", "masked_accuracy", "num_params", "flops", "latency_ms", SCORE)
"""Of a child scored with inherited weights."""


def check_before_start(
    config: Config,
    *,
    local: bool,
    address: str | None,
    own: bool = False,
    elsewhere: bool = False,
) -> None:
    """Check settings that pydantic cannot: operators, sampler, searcher, limits, workers.

    Args:
        own: whether a user's function, given from Python, scores, or nothing is scored any more.
        elsewhere: whether the run will be on another machine, whose devices are not known.

    Raises:
        InvalidInput: naming the rule, the value and the remedy.
    """
    if config.user_code:
        _add_user_code(config.user_code)
    space = config.space.build()
    _check_builds(config, space)
    if config.train.align:
        check_layers(config.train.align, space)
    build_sampler(config.train.sampler, space, seed=config.seed)
    objectives = Objectives.of(config.search.objectives)
    build_searcher(config.search.searcher, space, seed=config.seed, objectives=objectives)
    if config.search.scorer is not None:
        check_own_score(config.search.scorer)
    limits = Limits.parse(config.search.limits)
    if not elsewhere and "latency_ms" in limits.metrics | set(objectives.names):
        check_device(config.latency.device)
    if config.search.scorer is None and not own:
        _check_objectives(config, objectives)
    check_short_finetuning(config, own=own or config.search.scorer is not None)
    scoring_batch_size(config)
    check_trackers(config.trackers)
    cores = os.cpu_count() or 1
    if not local and not address and not _has_gpu():
        _check_workers(config.train.workers, cores, "train.workers")
        _check_workers(config.search.evaluators, cores, "search.evaluators")


def _check_builds(config: Config, space: SearchSpace) -> None:
    """A user's operator may raise anything."""
    try:
        meta_supernet(space, _any_shape(config))
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(
            f"the operators of the space must be made with (hidden_size=…, dropout=…) and their "
            f"settings, but one raises {type(error).__name__}: {error}"
        ) from error


def _check_objectives(config: Config, objectives: Objectives) -> None:
    if SCORE in objectives.names and config.search.finetune is None:
        raise InvalidInput(
            f"search.objectives names {SCORE}, which children have only if they are fine-tuned: "
            f"set search.finetune, such as {{task: sst2, data: hub}}"
        )
    for name in objectives.names:
        if name not in METRICS:
            raise InvalidInput(
                f"search.objectives must be among {', '.join(METRICS)}, but got {name!r}; a metric "
                f"of your own needs search.scorer, or from Python search(…, scorer=…)"
            )


def _any_shape(config: Config) -> TextShape:
    return TextShape.of(
        config.space,
        vocab_size=128,
        max_length=config.data.sequence_length,
        pad_id=0,
        pretraining=config.pretraining,
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_workers(wanted: int | None, cores: int, setting: str) -> None:
    if wanted is not None and wanted > cores:
        raise InvalidInput(
            f"{setting} must be at most {cores}, the CPU cores of this machine, but got {wanted}: "
            f"lower it, leave it out, or connect to a larger cluster with --address"
        )


def _add_user_code(folder: str) -> None:
    if not os.path.isdir(folder):
        raise InvalidInput(f"user_code must be a folder, but {folder!r} is none")
    path = os.path.abspath(folder)
    if path not in sys.path:
        sys.path.insert(0, path)
