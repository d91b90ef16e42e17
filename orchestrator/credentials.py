"""Credentials in a configuration or a run's URI are refused: both are written down and shown.

No message repeats what it refuses.
"""

import re
from typing import Any

from supernet.errors import InvalidInput

_IN_URI = re.compile(
    r"://[^\s@]*:[^\s@]*@"  # scheme://user:password@host
    r"|[?&][a-z_]*(password|secret|token|access_key|api_key|sig)[a-z_]*=",
    re.IGNORECASE,
)
_NAMES = re.compile(
    r"password|passwd|secret|api_?key|access_?key|(access|auth)_?token", re.IGNORECASE
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
    if _IN_URI.search(uri):
        scheme = uri.partition("://")[0]
        raise InvalidInput(
            f"the run's folder must be named without a password or key, for its name stands in "
            f"logs and reports, but this {scheme}:// URI holds one: {_REMEDY}"
        )


def refuse_in_settings(values: Any, place: str = "") -> None:
    """Refuse a configuration, as YAML gives it, with a password or key anywhere in it.

    Raises:
        InvalidInput: naming the setting.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            inner = f"{place}.{key}" if place else str(key)
            if isinstance(value, str) and value and _NAMES.search(str(key)):
                _refuse(inner)
            refuse_in_settings(value, inner)
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            refuse_in_settings(value, f"{place}[{number}]")
    elif isinstance(values, str) and _IN_URI.search(values):
        _refuse(place)


def _refuse(place: str) -> None:
    raise InvalidInput(
        f"{place} must hold no password or key, for a run's configuration is written down: "
        f"{_REMEDY}"
    )
