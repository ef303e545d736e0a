"""The TFX pipeline: configuration, graph, runners."""

import mlet_tf  # noqa: F401 (settles that tf.keras is Keras 3, before TFX loads it as Keras 2)
