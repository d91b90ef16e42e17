"""Run magic-nas on the cluster: `ray submit cluster.yaml submit.py -- run --config … --out …`.

`ray submit` copies this one file to the head node and runs it there; the arguments are those of
`magic-nas`, which the cluster's set-up commands installed. Detach with `ray submit --tmux`.
"""

import sys

from orchestrator.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if arguments and arguments[0] not in ("show", "-h", "--help") and "--address" not in arguments:
        arguments += ["--address", "auto"]
    sys.exit(main(arguments))
