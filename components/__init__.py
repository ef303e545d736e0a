"""Custom TFX components, one folder each."""

import mlet_tf.storage  # (Makes tf.keras Keras 3 before TFX loads it as Keras 2.)

mlet_tf.storage.add_file_systems()  # TFX opens artifacts itself.
