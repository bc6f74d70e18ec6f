"""Numbers as people read them."""

from collections.abc import Mapping
from typing import Any

UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


def score(value: float | None) -> str:
    """Give a metric: `0.812`; `-` where there is none."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Give a difference: `+0.012`."""
    return "-" if value is None else f"{value:+.3f}"


def interval(entry: Mapping[str, Any], of_difference: bool = False) -> str:
    """Give the 95 % interval of an entry: `[0.780, 0.844]`, with signs where it is of a difference."""
    show = signed if of_difference else score
    return f"[{show(entry['ci_low'])}, {show(entry['ci_high'])}]"


def p_value(value: float | None) -> str:
    """Give a p-value: `0.012`, `< 0.001`."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def short_count(number: float) -> str:
    """Give a large number in three digits or so: `22.7 M`."""
    for size, unit in UNITS:
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:g}"


def duration(seconds: float) -> str:
    """Give a time: `41 s`, `12.5 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(num_bytes: float | None) -> str:
    """Give bytes: `1.04 GiB`."""
    return "-" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def percent(share: float) -> str:
    """Give a share: `87 %`; 0 % and 100 % are none and all."""
    if 0 < share < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")


def detectable_gain(smallest: float | None) -> str:
    """Give a smallest detectable gain: `0.081`; more than 1 is more than there can be."""
    return "none" if smallest is not None and smallest > 1 else score(smallest)


def shorten(text: str, most: int) -> str:
    """Cut a text after so many characters, with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"
