"""The cluster file fits Ray's own schema, and `submit.py` takes what `magic-nas` takes."""

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_the_cluster_file_fits_rays_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]


def test_submit_takes_the_arguments_of_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "submit.py"), "--", "show", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "magic-nas search" in done.stderr
