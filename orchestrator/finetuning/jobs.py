"""What does the jobs of a study and shows how far they are: Ray's trials, or this process."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from orchestrator.finetuning.study import Do, Study
from orchestrator.finetuning.trial import Job, run_job
from orchestrator.progress import Progress
from orchestrator.store import RunStore

logger = logging.getLogger(__name__)


@contextmanager
def doing(store: RunStore, address: str | None, local: bool, study: Study) -> Iterator[Do]:
    """What does jobs: trials on a cluster, or a loop in this process."""
    if local:
        yield lambda jobs, on_row: _do_here(store, jobs, study, on_row)
        return
    from orchestrator.on_ray.cluster import connect

    logger.info("connecting to Ray %s", f"at {address}" if address else "on this machine")
    with connect(address, user_code=None, name=store.name) as cluster:
        if address:
            from orchestrator.on_ray.nodes import check_nodes

            check_nodes(store)

        def do(jobs: Sequence[Job], on_row: Callable[[dict[str, Any]], None]) -> None:
            from orchestrator.on_ray.finetuning import finetune_on_ray

            with _shown(store, jobs) as shown:

                def on_both(row: dict[str, Any]) -> None:
                    on_row(row)
                    shown.row(row)

                finetune_on_ray(
                    store,
                    cluster,
                    jobs,
                    study.data,
                    teacher_logits=study.taught,
                    on_progress=shown.step,
                    on_row=on_both,
                )

        yield do


def _do_here(
    store: RunStore,
    jobs: Sequence[Job],
    study: Study,
    on_row: Callable[[dict[str, Any]], None],
) -> None:
    with _shown(store, jobs) as shown:
        for job in jobs:
            row = run_job(
                store,
                job,
                study.data[job.task],
                teacher_logits=study.taught.get(job.task),
                on_progress=lambda step, steps, job=job: shown.step(job, step, steps),  # type: ignore[misc]
            )
            on_row(row)
            shown.row(row)


class _Shown:
    """Fine-tunings done so far, counted in parts of one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._parts: dict[str, float] = {}

    def step(self, job: Job, step: int, steps: int) -> None:
        """Steps done of a job."""
        self._parts[job.name] = step / steps
        self._show("")

    def row(self, row: Mapping[str, Any]) -> None:
        """A job is done."""
        self._parts[row["name"]] = 1.0
        self._show(
            f"{row['task']} {'diverged' if row['error'] else format(row['headline'], '.3f')}"
        )

    def _show(self, note: str) -> None:
        self._progress.at(sum(self._parts.values()), note)


@contextmanager
def _shown(store: RunStore, jobs: Sequence[Job]) -> Iterator[_Shown]:
    with Progress(store.name, "finetune", total=len(jobs), unit="job") as progress:
        yield _Shown(progress)
