"""Formats numbers for commands and reports."""

from collections.abc import Mapping

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: float, digits: int | None = None) -> str:
    """Formats a number of bytes, such as `1.5 MiB`; by default with few digits."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    if digits is None:
        digits = 0 if unit == 0 else 1 if unit < 3 else 2
    return f"{count:.{digits}f} {_UNITS[unit]}"


def budget_text(budget: Mapping[str, float]) -> str:
    """Says in words what a compressed model may cost: `max_auc_drop`, `bytes` or `ratio`."""
    ((name, value),) = budget.items()
    if name == "max_auc_drop":
        return f"at most {value:g} less AUC"
    if name == "bytes":
        return f"at most {value:,} bytes of rows and addresses"
    return f"{value:g} times fewer bytes than the collapsed tables"
