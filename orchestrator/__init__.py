"""magic-nas from Python: the configuration, `run`, `search`, and what they leave.

Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.config import Config as Config
    from orchestrator.config import load as load_config
    from orchestrator.driver import run as run
    from orchestrator.driver import search as search
    from orchestrator.handover import export_folder as export_folder
    from orchestrator.leaderboard import load_leaderboard as load_leaderboard

_HOMES = {
    "Config": ("orchestrator.config", "Config"),
    "export_folder": ("orchestrator.handover", "export_folder"),
    "load_config": ("orchestrator.config", "load"),
    "load_leaderboard": ("orchestrator.leaderboard", "load_leaderboard"),
    "run": ("orchestrator.driver", "run"),
    "search": ("orchestrator.driver", "search"),
}
__all__ = ["Config", "export_folder", "load_config", "load_leaderboard", "run", "search"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
