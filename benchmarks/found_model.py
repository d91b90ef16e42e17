"""What `benchmarks.downstream` found, pre-trained alone: `sst2` and `squad` fine-tune it.

    python -m benchmarks.found_model [--quick] [--work DIR]

Pre-trains the architecture of `benchmarks/results/downstream.json` by that comparison's recipe, on
`books_pd` in $MAGIC_NAS_DATA, and writes it as an export, `benchmarks/results/found_model.zip`.

Takes about an hour on two cores; goes on where it stopped, from the folder given with --work.
"""

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from benchmarks.downstream import architecture_config, learnt_alone
from benchmarks.found_study import options_of
from benchmarks.record import RESULTS, provenance, write_record
from orchestrator import run
from orchestrator.finetuning.digest import digest_of
from orchestrator.finetuning.sources import model_source
from orchestrator.node_copy import folder_here
from orchestrator.store import RunStore
from supernet.manifest import MANIFEST

NAME = "found_model"


def found_model(folder: Path) -> tuple[str, dict[str, Any]]:
    """Unpack the model that is kept; returns its folder, and what is known of it."""
    with ZipFile(RESULTS / f"{NAME}.zip") as archive:
        archive.extractall(folder)
    return str(folder), json.loads((RESULTS / f"{NAME}.json").read_text())["results"]


def pretrain(work: Path, *, quick: bool) -> str:
    """Pre-train it, or go on; returns what `magic-nas finetune` calls it."""
    record = json.loads((RESULTS / "downstream.json").read_text())
    architecture: str = record["results"]["architecture"]
    run(architecture_config(architecture, quick=quick), out=work, only=("data", "train"))
    return f"{work}@{architecture}"


def pack(model: Path, archive: Path) -> None:
    """The files that make a model, as an archive; its card names a folder, and stays behind."""
    with ZipFile(archive, "w", ZIP_DEFLATED) as packed:
        for file in sorted(model.iterdir()):
            if file.name not in (MANIFEST, "README.md"):
                packed.write(file, file.name)


def main() -> None:
    """Run it."""
    options = options_of(__doc__, f"runs/{NAME}")
    origin = provenance(seeds={"pretraining": 0})
    model = pretrain(options.work, quick=options.quick)
    folder = options.work if options.quick else RESULTS
    store = RunStore(options.work / "export_of_child")
    exported = folder_here(store, model_source(store, model).place)
    pack(exported, folder / f"{NAME}.zip")
    results = {
        "architecture": model.rpartition("@")[2],
        "model_digest": digest_of(exported),
        **learnt_alone(options.work),
        "quick": options.quick,
    }
    for name, value in results.items():
        print(f"{name:<14}{value}")
    write_record(NAME, results, origin=origin, folder=folder)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
