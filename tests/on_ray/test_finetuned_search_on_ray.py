"""Short fine-tuning by an evaluator of a cluster: the scores of one process."""

import shutil
from pathlib import Path

import pytest
import ray

from orchestrator import load_config
from orchestrator.finetuning.short import read_examples, with_finetuning
from orchestrator.local import _evaluator
from orchestrator.on_ray.actors import SuperNetActor
from orchestrator.on_ray.cluster import connect
from orchestrator.on_ray.names import actor_name, actor_options
from orchestrator.on_ray.search import _start_evaluator
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.space import Architecture
from tests.orchestrator.tiny_glue import write_sst2

pytestmark = pytest.mark.ray
CHECKPOINT = "supernet/step-00000060"
CHILDREN = ["conv7-identity-identity", "identity-attention-conv3"]


def test_an_evaluator_gets_the_examples_and_scores_as_one_process_does(
    cluster_address: str, trained_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    files = write_sst2(tmp_path / "files")
    short = f"search.finetune={{task: sst2, data: {files}, steps: 60, learning_rate: 1e-2}}"
    config = load_config(tmp_path / "run" / "config.yaml", [short])
    store = RunStore(tmp_path / "run")
    store.write_bytes("config.yaml", config.to_yaml().encode())
    run, examples = Run.open(store.uri), read_examples(config)
    shutil.rmtree(files)  # an evaluator's machine does not have them
    with connect(cluster_address, user_code=None) as cluster:
        supernet = SuperNetActor.options(**actor_options(run, "supernet")).remote(store.uri)
        name = actor_name(run, "evaluator-0")
        evaluator = _start_evaluator(run, cluster, CHECKPOINT, None, ray.put(examples), name)
        rows = ray.get(evaluator.score_together.remote(CHILDREN))
        for actor in (evaluator, supernet):
            ray.kill(actor)
    here = with_finetuning(run, _evaluator(run, CHECKPOINT), examples)
    expected = here.rows([Architecture.parse(text) for text in CHILDREN])
    for row, other in zip(rows, expected, strict=True):
        assert row["error"] is None
        assert row["finetuned_score"] == other["finetuned_score"] > 0.9
        assert row["val_loss_nats"] == other["val_loss_nats"]
