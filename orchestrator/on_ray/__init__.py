"""Everything that touches Ray: actors, training, search and retraining on a cluster."""

import os

from orchestrator.log_lines import FOREIGN

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", FOREIGN)  # read when Ray is imported
