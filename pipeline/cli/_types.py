"""Types of options."""

import math

import click


class FiniteRange(click.FloatRange):
    """A number within a range, which neither NaN nor infinity is; `FloatRange` lets NaN through."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        Raises:
            click.BadParameter: It is none, or out of range.
        """
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number
