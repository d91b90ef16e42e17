"""Run magic-nas on the cluster: `ray submit cluster.yaml submit.py -- run --config … --out …`.

`ray submit` copies this one file to the head node and runs it there; the arguments are those of
`magic-nas`, which the cluster's set-up commands installed.
"""

import os
import sys

from orchestrator.cli import main

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    sys.exit(main(sys.argv[1:]))
