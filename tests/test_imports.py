"""Imports go one way, and Ray and DeepSpeed stay in their edge files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"supernet": set(), "evaluators": {"supernet"}, "orchestrator": {"supernet", "evaluators"}}
PACKAGES = set(LAYERS)


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def files_that_import(name: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if name in imported_packages(path)
    }


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_go_from_orchestrator_to_evaluators_to_supernet(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        foreign = imported_packages(path) & (PACKAGES - {package})
        assert foreign <= LAYERS[package], path


def test_ray_is_imported_in_its_own_folder_only() -> None:
    found = files_that_import("ray")
    assert found
    assert {str(Path(path).parent) for path in found} == {"orchestrator/on_ray"}


def test_deepspeed_is_imported_in_one_file_only() -> None:
    assert files_that_import("deepspeed") == {"supernet/deepspeed_engine.py"}


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = (
        "import sys, orchestrator, supernet, evaluators, orchestrator.cli\n"
        "print({'torch', 'ray', 'deepspeed', 'transformers', 'pandas', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
