"""Docstrings of installed libraries as a corpus: real English on every machine, no download.

Found by parsing sources with `ast`; nothing is imported. Examples, rules and near-duplicates
are left out. Groups are modules, so that a split by group keeps a module's text together.
"""

import ast
import gc
import importlib.util
import inspect
import logging
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from supernet.data.lines import is_unicode
from supernet.data.shingles import SeenShingles
from supernet.errors import InvalidInput

_log = logging.getLogger(__name__)

GROUP_DEPTH = 3
"""Components of a module's dotted name that make up its group."""
MIN_WORDS = 8
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "lib2to3"}
)
_RULE = re.compile(r"^[\s=\-~^*#.`+|]+$")
_TREES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def installed_docstrings(libraries: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(group, text) of each docstring; the first component of a group is the library.

    The order is fixed and mixes the modules of all libraries, so that any first stretch of it
    is a sample of the whole.

    Raises:
        InvalidInput: if a library is not installed.
    """
    seen = SeenShingles()
    for module, path in _modules(libraries):
        group = ".".join(module.split(".")[:GROUP_DEPTH])
        for docstring in _docstrings(path):
            text = plain_english(docstring)
            if len(text.split()) >= MIN_WORDS and seen.add_unless_near_duplicate(text):
                yield group, text


def plain_english(docstring: str) -> str:
    """The docstring without examples at the prompt, fenced code and drawn rules."""
    kept: list[str] = []
    in_example = in_fence = False
    for line in inspect.cleandoc(docstring).splitlines():
        stripped = line.strip()
        if stripped.startswith("```"):
            in_fence = not in_fence
            continue
        in_example = stripped.startswith(">>>") or (in_example and stripped != "")
        if not in_example and not in_fence and not (stripped and _RULE.match(line)):
            kept.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _modules(libraries: Iterable[str]) -> list[tuple[str, Path]]:
    modules = [found for library in libraries for found in _library_modules(library)]
    return sorted(modules, key=lambda found: (zlib.crc32(found[0].encode()), found[0]))


def _library_modules(library: str) -> list[tuple[str, Path]]:
    modules: list[tuple[str, Path]] = []
    for root in _roots(library):
        files = [root] if root.is_file() else root.rglob("*.py")
        for path in files:
            parts = path.relative_to(root).with_suffix("").parts
            if not _SKIPPED_FOLDERS.intersection(parts):
                modules.append((".".join((library, *parts)), path))
    if not modules:
        raise InvalidInput(f"library {library!r} has no Python sources; leave it out")
    return modules


def _roots(library: str) -> list[Path]:
    """The library's folders, or its one file."""
    if library == "stdlib":
        return [Path(sysconfig.get_paths()["stdlib"])]
    spec = importlib.util.find_spec(library) if library.isidentifier() else None
    if spec is None:
        raise InvalidInput(
            f"data.libraries must be installed, but {library!r} is not; install it or leave it out"
        )
    if spec.submodule_search_locations:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _docstrings(path: Path) -> list[str]:
    try:
        source = path.read_bytes()
    except OSError as error:
        _log.warning("%s is left out: %s", path, error)
        return []
    if b'"""' not in source and b"'''" not in source:
        return []
    with warnings.catch_warnings(), _no_garbage_collection():
        warnings.simplefilter("ignore")
        try:
            module = ast.parse(source)
        except (SyntaxError, ValueError):  # templates and sources for other versions
            return []
        return list(_tree_docstrings(module))


def _tree_docstrings(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    if isinstance(tree, ast.Module):
        yield from _own_docstring(tree)
    for node in _statements(tree.body):
        if isinstance(node, _TREES):
            yield from _own_docstring(node)
        if isinstance(node, ast.ClassDef):
            yield from _tree_docstrings(node)


def _own_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring and is_unicode(docstring):
        yield docstring


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements, those under `if` and `try` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees have no cycles worth collecting: parsing is a third faster without."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
