"""Credentials in a configuration or a run's URI are refused: both are written down and shown.

No message repeats what it refuses.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from supernet.errors import InvalidInput

_IN_URI = re.compile(
    r"://[^\s@:]*:[^\s@]*@"  # scheme://user:password@host
    r"|[?&][a-z_]*(password|secret|token|access_key|api_key|sig)[a-z_]*=",
    re.IGNORECASE,
)
_NAMES = re.compile(
    r"password|passwd|secret|api[_-]?key|access[_-]?key|(access|auth)[_-]?token"
    r"|^(?!(mask|pad|unk|cls|sep|bos|eos)_token$)(.*[_-])?token$",  # those are a tokenizer's
    re.IGNORECASE,
)
_REMEDY = (
    "leave it out and give it to every node where its library looks, such as "
    "AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, WANDB_API_KEY, or a file like ~/.pgpass"
)


def refuse_in_uri(uri: str) -> None:
    """Refuse a run's URI that holds a password or key.

    Raises:
        InvalidInput: if it does.
    """
    if _has_secret(uri):
        scheme = uri.partition("://")[0]
        raise InvalidInput(
            f"the run's folder must be named without a password or key, for its name stands in "
            f"logs and reports, but this {scheme}:// URI holds one: {_REMEDY}"
        )


def refuse_in_settings(values: Any) -> None:
    """Refuse a configuration, as YAML gives it, with a password or key anywhere in it.

    Raises:
        InvalidInput: naming the setting; or one that holds itself, as a YAML alias can.
    """
    _refuse_below(values, "", {})


def _refuse_below(value: Any, place: str, seen: dict[int, bool]) -> None:
    """`seen` has the containers that were met, by id, and whether they were looked through."""
    if isinstance(value, str) and _has_secret(value):
        _refuse(place)
    if not isinstance(value, dict | list | tuple) or seen.get(id(value)):
        return
    if id(value) in seen:
        raise InvalidInput(f"a setting must not hold itself, but {place} does: write it out")
    seen[id(value)] = False
    for key, inner_place, inner in _entries(value, place):
        if _NAMES.search(key) and not _is_harmless(inner):
            _refuse(inner_place)
        _refuse_below(inner, inner_place, seen)
    seen[id(value)] = True


def _entries(value: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """The name, the place and the value of all that a container holds; lists have no names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), f"{place}.{key}" if place else str(key), inner
    else:
        for number, inner in enumerate(value):
            yield "", f"{place}[{number}]", inner


def _is_harmless(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, bool)


def _has_secret(text: str) -> bool:
    return any(_IN_URI.search(form) for form in (text, unquote(text)))


def _refuse(place: str) -> None:
    raise InvalidInput(
        f"{place} must hold no password or key, for a run's configuration is written down: "
        f"{_REMEDY}"
    )
