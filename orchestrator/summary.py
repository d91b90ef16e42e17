"""What the command line prints at the end: top ten, comparison, and where things lie."""

from typing import Any

from orchestrator.leaderboard import format_leaderboard, load_leaderboard
from orchestrator.runinfo import read_info
from orchestrator.runs import Run

WRITTEN = {
    "leaderboard.parquet": "every scored child",
    "retrained": "models trained stand-alone",
    "export": "Hugging Face model: {auto_class}.from_pretrained(…, trust_remote_code=True)",
    "report.html": "the report",
    "run.json": "times, memory, versions, seeds",
}


def print_summary(run: Run) -> None:
    """Print what the run has so far."""
    store = run.store
    if store.exists("leaderboard.parquet"):
        print(f"\nTop ten of the leaderboard\n{format_leaderboard(load_leaderboard(store.uri))}")
    info = read_info(store)
    if "models" in info:
        print(f"\n{format_comparison(info)}")
    written = [(name, text) for name, text in WRITTEN.items() if store.exists(name)]
    if written:
        replaced = run.config.pretraining.objective == "replaced_tokens"
        auto_class = f"AutoModelFor{'PreTraining' if replaced else 'MaskedLM'}"
        print("\nWritten")
        for name, text in written:
            print(f"  {store.uri_of(name)}  ({text.format(auto_class=auto_class)})")


def format_comparison(info: dict[str, Any]) -> str:
    """The models trained stand-alone, beside the unigrams."""
    lines = ["Trained stand-alone   test loss   accuracy   parameters"]
    for model in info["models"]:
        lines.append(
            f"  {model['name']:<19} {model['test_loss_nats']:6.3f} nats"
            f" {model['masked_accuracy']:9.1%} {model['num_params']:12,}"
        )
        if "generator_loss_nats" in model:
            lines.append(f"    its generator     {model['generator_loss_nats']:8.3f} nats")
    lines.append(f"  {'training unigrams':<19} {info['unigram_nats']['test']:6.3f} nats")
    verdict = "" if info["comparison"]["valid"] else "The comparison is not valid: "
    return "\n".join([*lines, f"{verdict}{info['comparison']['reason']}"])
