"""TFX's Transform with vocabularies from the counts that ClickLogExampleGen writes."""

from mlet_tf.components.transform.component import Transform

__all__ = ["Transform"]
