"""The source of a user's operators ("module:Class"), made to load beside an exported model.

A file is copied if it needs nothing that the export would not have: the standard library,
installed packages, and `from supernet.operators import …`, which is rewritten to the copy of
that file. Other local files are refused. Part of the export.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from types import ModuleType

from torch import Tensor, nn

from supernet.errors import InvalidInput
from supernet.operators import OPERATOR_KINDS

_OWN_IMPORT = re.compile(r"^(\s*from\s+)supernet\.operators(\s+import\b)", re.MULTILINE)
_OURS = "magic-nas"


def custom_sources(chain: nn.Module, kinds: Iterable[str]) -> dict[str, str]:
    """File name to text, for the user's operators among `kinds` and the list that names them.

    Args: chain: the operators themselves, whose tensors are checked.

    Raises:
        InvalidInput: if an operator cannot be loaded without the files that surround it.
    """
    _check_tensors(chain)
    own_kinds = sorted(set(kinds) - set(OPERATOR_KINDS))
    references = [kind.split(":") for kind in own_kinds]
    sources = {f"{_copy_of(module)}.py": _portable(module) for module, _ in references}
    imports = [
        f"from .{_copy_of(module)} import {name} as Custom{number}"
        for number, (module, name) in enumerate(references)
    ]
    entries = [f'    "{kind}": Custom{number},' for number, kind in enumerate(own_kinds)]
    lines = [
        '"""The operators that this model brings along, by the kind in its configuration."""',
        "",
        *imports,
        "",
        "CUSTOM_KINDS = {",
        *entries,
        "}",
    ]
    return {**sources, "custom_operators.py": "\n".join(lines) + "\n"}


def _copy_of(module: str) -> str:
    return "custom_" + module.replace("_", "__").replace(".", "_")


def _portable(name: str) -> str:
    module = importlib.import_module(name)
    source = _OWN_IMPORT.sub(r"\1.operators\2", _source(module))
    for imported in _imports(source):
        if not _comes_along(imported):
            raise InvalidInput(
                f"an operator is exported with its own file alone, which may import installed "
                f"packages and 'from supernet.operators import …', but {module.__file__} imports "
                f"{imported!r}; move what it needs into the file"
            )
    return source


def _source(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise InvalidInput(
            f"an operator is exported as Python source, but {module.__name__!r} has none: {error}"
        ) from None


def _imports(source: str) -> Iterator[str]:
    """What a file imports; relative modules begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def _comes_along(imported: str) -> bool:
    top = imported.split(".")[0]
    if imported == ".operators" or top in sys.stdlib_module_names:
        return True
    owners = _distributions().get(top, [])
    return bool(owners) and _OURS not in owners


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _check_tensors(chain: nn.Module) -> None:
    """Refuse tensors that a weights file does not hold: loading would leave them undefined."""
    for name, module in chain.named_modules():
        unsaved = sorted(module._non_persistent_buffers_set) + [
            key for key, value in vars(module).items() if isinstance(value, Tensor)
        ]
        if unsaved:
            raise InvalidInput(
                f"an operator's tensors must be parameters or persistent buffers to be exported, "
                f"but {type(module).__name__} ({name}) has {unsaved[0]!r}; register it with "
                f"register_buffer, or compute it in forward"
            )
