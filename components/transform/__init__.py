"""TFX's Transform with vocabularies made from the counts that ClickLogExampleGen leaves."""

from mlet_tf.components.transform.component import Transform

__all__ = ["Transform"]
