"""TFX's Transform with vocabularies made from the counts that ClickLogExampleGen leaves."""

from components.transform.component import Transform

__all__ = ["Transform"]
