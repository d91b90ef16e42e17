"""Values as the report's page shows them: the filters of its template."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from supernet.space import SEPARATOR


def nats(value: float | None) -> str:
    """A loss with three decimals."""
    return "–" if _absent(value) else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "–" if _absent(value) else f"{value:.1%}".replace("%", " %")


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None or pd.isna(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def big_number(number: int) -> str:
    """A count: 390,625 in full, from a billion on as 1.2 × 10¹⁸."""
    if number < 10**9:
        return f"{number:,}"
    exponent = len(str(number)) - 1
    raised = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{number // 10 ** (exponent - 1) / 10:.1f} × 10{raised}"


def spread(frame: pd.DataFrame, count: int) -> list[dict[Hashable, Any]]:
    """At most `count` lines, evenly spread, the first and the last among them."""
    places = np.unique(np.linspace(0, len(frame) - 1, min(count, len(frame))).round().astype(int))
    return frame.iloc[places].to_dict("records")


def breakable(architecture: str) -> Markup:
    """An architecture, escaped, with places where a line may break between its layers."""
    return Markup(SEPARATOR + "<wbr>").join(escape(name) for name in architecture.split(SEPARATOR))


def figure(encoded: str, text: str) -> Markup:
    """An image inside the page, with the text that stands for it."""
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(encoded, text)


def _absent(value: float | None) -> bool:
    return value is None or bool(pd.isna(value))
