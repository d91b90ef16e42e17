"""The command line: `magic-nas run` and one command per stage.

Bad input ends with exit code 2 and a message; nothing heavy is imported before a command needs it.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeAlias

from orchestrator.log_lines import log_to_stderr
from orchestrator.progress import quieten_bars

EXAMPLE = """\
example:
  magic-nas run --config examples/quickstart.yaml --out runs/quickstart
  magic-nas run --config examples/quickstart.yaml --out runs/books \\
      --set data.source=books.txt --set search.candidates=500
  magic-nas show runs/quickstart

Stop a run at any time; the same command goes on where it stopped.
"""

COMMANDS = {
    "run": "all stages: data, train, search, retrain, export, report",
    "train": "prepare the data and train the super-net",
    "search": "score children with inherited weights and write the leaderboard",
    "retrain": "train the best child, the baseline and the controls stand-alone",
    "export": "write the retrained best child as a Hugging Face model",
    "report": "write report.html again, from whatever the run has so far",
}
STAGES_OF = {"run": ("data", "train", "search", "retrain", "export", "report")} | {
    "train": ("data", "train")
}
EXIT_FAILED, EXIT_BAD_INPUT = 1, 2

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    if getattr(options, "local", False):
        options.address = None
    log_to_stderr()
    quieten_bars()
    from supernet.errors import InvalidInput, MagicNasError

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code: int | None = options.work(options)
    except InvalidInput as error:
        print(f"magic-nas: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except MagicNasError as error:
        print(f"magic-nas: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt as stopped:
        print("\nmagic-nas: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + (int(str(stopped)) if str(stopped) else signal.SIGINT)
    return code or 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="magic-nas",
        description="Neural architecture search for Transformers with shared weights.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_stages(commands)
    _add_measurements(commands)
    _add_models(commands)
    _add_checks(commands)
    return parser


def _add(
    commands: Commands, name: str, text: str, work: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(work=work)
    return command


def _add_stages(commands: Commands) -> None:
    for name, text in COMMANDS.items():
        command = _add(commands, name, text, _report if name == "report" else _run)
        command.epilog = EXAMPLE
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--out", required=True, metavar="DIR", help="the run's folder")
        if name != "report":
            _add_run_options(command)
        if name == "search":
            command.add_argument(
                "--checkpoint", metavar="STEP", help='such as "step-00000400"; default: the newest'
            )
    show = _add(commands, "show", "print a run's leaderboard", _show)
    show.add_argument("run", help="the run's folder")
    show.add_argument("--top", type=_count, default=10, metavar="N", help="rows (default 10)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but got {text!r}")
    return int(text)


def _add_measurements(commands: Commands) -> None:
    ranking = _add(
        commands,
        "rank",
        "compare inherited scores with stand-alone training of some children",
        _rank,
    )
    ranking.add_argument("run", help="the run's folder")
    ranking.add_argument("--checkpoint", metavar="STEP", help="default: the newest")
    _add_overrides(ranking, "rank.children=60")
    _add_where(ranking)
    measure = _add(
        commands,
        "interference",
        "measure how children that share operators disturb one another",
        _interference,
    )
    measure.add_argument("run", help="the run's folder")
    _add_overrides(measure, "interference.groups=20")
    timing = _add(
        commands,
        "latency",
        "measure how long children take on a device, for limits and objectives",
        _latency,
    )
    timing.add_argument("run", help="the run's folder")
    _add_overrides(timing, "latency.device=cuda")


def _add_models(commands: Commands) -> None:
    onnx = _add(commands, "onnx", "write a model's folder as an ONNX file", _onnx)
    onnx.add_argument("model", help="an export's folder, or any Hugging Face model's or its name")
    onnx.add_argument("--out", metavar="FILE", help="default: model.onnx in the model's folder")
    onnx.add_argument(
        "--task",
        choices=(
            "masked_lm",
            "replaced_tokens",
            "sequence_classification",
            "question_answering",
            "features",
        ),
        help="default: what the model was saved as",
    )
    tuning = _add(
        commands,
        "finetune",
        "fine-tune a model on GLUE or SQuAD tasks, several seeds each",
        _finetune,
    )
    tuning.add_argument(
        "model",
        help="a model's folder, a run's (its export), RUN@best, RUN@RANK or RUN@ARCHITECTURE "
        "(inherited weights), or a name on the Hugging Face hub",
    )
    tuning.add_argument(
        "--task",
        action="append",
        required=True,
        dest="tasks",
        metavar="TASK",
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, squad or squad2; repeatable",
    )
    tuning.add_argument(
        "--data",
        default="hub",
        metavar="DIR",
        help="of the tasks' original files; default: the hub",
    )
    tuning.add_argument(
        "--out", metavar="DIR", help="for figures and models; default: the run's folder"
    )
    tuning.add_argument(
        "--config",
        metavar="FILE",
        help="YAML whose section 'finetune' counts; default: the run's own, or all defaults",
    )
    _add_overrides(tuning, "finetune.seeds=3")
    _add_where(tuning)


def _add_checks(commands: Commands) -> None:
    ahead = _add(
        commands, "plan", "say what a configuration costs: parameters, memory per GPU, days", _plan
    )
    ahead.add_argument("config", metavar="CONFIG", help="YAML")
    _add_overrides(ahead, "train.zero_stage=2")
    ahead.add_argument("--gpus", type=int, metavar="N", help="default: train.workers, or 1")
    ahead.add_argument(
        "--utilisation", type=float, default=0.4, metavar="SHARE", help="of the peak (default 0.4)"
    )
    ahead.add_argument(
        "--peak-tflops",
        type=float,
        metavar="TFLOPS",
        help="of one GPU (default 312, an A100 in bf16; 19.5 for train.precision fp32)",
    )
    check = _add(
        commands,
        "doctor",
        "check every node of a cluster, or of this machine: versions, devices, room, storage",
        _doctor,
    )
    _add_address(check)
    check.add_argument("--config", metavar="FILE", help="whose workers the cluster is to have")
    check.add_argument("--out", metavar="DIR", help="a run's folder that every node is to reach")


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", metavar="FILE", help="YAML; default: the run's own, or all defaults"
    )
    _add_overrides(command, "train.steps=500")
    _add_where(command)


def _add_where(command: argparse.ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group()
    _add_address(where)
    where.add_argument(
        "--local", action="store_true", help="one process without Ray, for small tries"
    )


def _add_address(options: argparse._ActionsContainer) -> None:
    options.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help='a running Ray cluster ("auto", "host:6379"); default: $RAY_ADDRESS, or a local one',
    )


def _add_overrides(command: argparse.ArgumentParser, example: str) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help=f"override a key of the configuration, such as {example}; repeatable",
    )


def _run(options: argparse.Namespace) -> None:
    from orchestrator.config import load, override
    from orchestrator.driver import run
    from orchestrator.runs import CONFIG, Run
    from orchestrator.store import RunStore
    from orchestrator.summary import print_summary

    store = RunStore(options.out)
    store.check_writable()
    if options.config is None and store.exists(CONFIG):
        config = override(Run.open(options.out).config, options.overrides)
    else:
        config = load(options.config, options.overrides)
    finished = run(
        config,
        out=options.out,
        address=options.address,
        local=options.local,
        only=STAGES_OF.get(options.command, (options.command,)),
        checkpoint=getattr(options, "checkpoint", None),
    )
    print_summary(finished)


def _report(options: argparse.Namespace) -> None:
    from orchestrator.report import write_report
    from orchestrator.runs import Run

    store = Run.open(options.out).store
    write_report(store)
    print(store.uri_of("report.html"))


def _rank(options: argparse.Namespace) -> None:
    from orchestrator.ranking import FRAME, SUMMARY, rank
    from orchestrator.ranking_summary import format_ranking
    from orchestrator.store import RunStore

    summary = rank(
        options.run,
        options.overrides,
        checkpoint=options.checkpoint,
        address=options.address,
        local=options.local,
    )
    print(format_ranking(summary))
    store = RunStore(options.run)
    print("".join(f"\n{store.uri_of(name)}" for name in (FRAME, SUMMARY, "report.html")))


def _show(options: argparse.Namespace) -> None:
    from orchestrator.leaderboard import format_leaderboard, load_leaderboard

    print(format_leaderboard(load_leaderboard(options.run), top=options.top))


def _interference(options: argparse.Namespace) -> None:
    from orchestrator.interference import ROWS, SUMMARY, interference
    from orchestrator.interference_summary import format_findings
    from orchestrator.store import RunStore

    print(format_findings(interference(options.run, options.overrides)))
    store = RunStore(options.run)
    print("".join(f"\n{store.uri_of(name)}" for name in (ROWS, SUMMARY, "report.html")))


def _latency(options: argparse.Namespace) -> None:
    from orchestrator.latency import format_latency, latency
    from orchestrator.runs import LATENCY
    from orchestrator.store import RunStore

    print(format_latency(latency(options.run, options.overrides)))
    print(f"\n{RunStore(options.run).uri_of(LATENCY)}")


def _onnx(options: argparse.Namespace) -> None:
    from pathlib import Path

    from orchestrator.onnx_export import export_onnx

    out = None if options.out is None else Path(options.out)
    written = export_onnx(options.model, out=out, kind=options.task)
    print(
        f"{written.path}: {written.kind}, {', '.join(written.inputs)} to "
        f"{', '.join(written.outputs)}, any batch, 2 to {written.longest} tokens; "
        f"within {written.max_difference:.1e} of PyTorch"
    )


def _finetune(options: argparse.Namespace) -> None:
    from orchestrator.config import load, override
    from orchestrator.finetuning.driver import finetune
    from orchestrator.finetuning.sources import run_named, run_of
    from orchestrator.finetuning.summary import SUMMARY
    from orchestrator.finetuning.table import format_summary
    from orchestrator.runs import Run
    from orchestrator.store import RunStore

    run = run_of(options.model)
    out = run_named(options.model) if options.out is None else options.out
    if options.config is None and run is not None:
        config = override(Run.open(run).config, options.overrides)
    else:
        config = load(options.config, options.overrides)
    summary = finetune(
        options.model,
        options.tasks,
        data=options.data,
        out=out,
        settings=config.finetune,
        address=options.address,
        local=options.local,
    )
    print(format_summary(summary))
    print(f"\n{RunStore(out).uri_of(SUMMARY)}")


def _plan(options: argparse.Namespace) -> None:
    from orchestrator.config import load
    from orchestrator.plan import A100_TFLOPS, Gpus, format_plan, plan

    config = load(options.config, options.overrides)
    count = (config.train.workers or 1) if options.gpus is None else options.gpus
    peak = options.peak_tflops
    peak = A100_TFLOPS[config.train.precision] if peak is None else peak
    gpus = Gpus(count, peak, options.utilisation)
    print(format_plan(plan(config, gpus), config, gpus))


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator.doctor import doctor

    found = doctor(options.address, config=options.config, out=options.out)
    print(found.table)
    print("".join(f"\n{remedy}" for remedy in found.remedies) or "\nevery node is fit for a run")
    return EXIT_FAILED if found.remedies else 0


if __name__ == "__main__":
    sys.exit(main())
