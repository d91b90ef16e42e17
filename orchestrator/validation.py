"""What can be known to be wrong before data is read or a cluster is started."""

import os
import sys

from orchestrator.config import Config
from orchestrator.limits import Limits
from orchestrator.searchers import build_searcher
from supernet.alignment import check_layers
from supernet.errors import InvalidInput
from supernet.model import TextShape, meta_supernet
from supernet.sampler import build_sampler


def check_before_start(config: Config, *, local: bool, address: str | None) -> None:
    """Check settings that pydantic cannot: operators, sampler, searcher, limits, workers.

    Raises:
        InvalidInput: naming the rule, the value and the remedy.
    """
    if config.user_code:
        _add_user_code(config.user_code)
    space = config.space.build()
    meta_supernet(space, _any_shape(config))
    if config.train.align:
        check_layers(config.train.align, space)
    build_sampler(config.train.sampler, space, seed=config.seed)
    build_searcher(config.search.searcher, space, seed=config.seed)
    Limits.parse(config.search.limits)
    cores = os.cpu_count() or 1
    if not local and not address and not _has_gpu():
        _check_workers(config.train.workers, cores, "train.workers")
        _check_workers(config.search.evaluators, cores, "search.evaluators")


def _any_shape(config: Config) -> TextShape:
    return TextShape.of(
        config.space, vocab_size=128, max_length=config.data.sequence_length, pad_id=0
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
