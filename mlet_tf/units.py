"""Formats numbers for commands and reports."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: float, digits: int | None = None) -> str:
    """Formats a number of bytes, such as `1.5 MiB`; by default with few digits."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    if digits is None:
        digits = 0 if unit == 0 else 1 if unit < 3 else 2
    return f"{count:.{digits}f} {_UNITS[unit]}"
