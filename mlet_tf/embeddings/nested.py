"""Embeddings whose leading columns are usable alone."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.types import Tensor


@keras.saving.register_keras_serializable(package="mlet_tf")
class NestedEmbeddings(keras.layers.Layer):
    """Nested dropout over the columns of an embedding: each row of a batch is trained at a random size.

    In training a size is drawn for each row of the batch, and its columns beyond that are set to zero. In
    inference all columns are used. After training, the first `n` columns are usable alone for each `n` of `sizes`.

    Args:
        embeddings: Layer from ids to `[B, F, d]`, such as `EmbeddingCollection`.
        sizes: Numbers of leading columns to train for; `d` is added.
        full_share: Share of the rows trained with all columns; the others are drawn evenly from the smaller
            sizes.
        seed: Seed of the draw.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        That of `embeddings`.

    Output shape:
        `[B, F, d]`.

    References:
        Rippel, Gelbart and Adams, "Learning Ordered Representations with Nested Dropout", arXiv 1402.0915; Kusupati
        et al., "Matryoshka Representation Learning", arXiv 2205.13147.
    """

    def __init__(
        self,
        embeddings: keras.layers.Layer,
        sizes: Sequence[int],
        full_share: float = 0.5,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embeddings = embeddings
        self.sizes = tuple(sorted(int(size) for size in sizes))
        self.full_share = float(full_share)
        if not self.sizes or self.sizes[0] < 1 or not 0 < self.full_share <= 1:
            raise ValueError(
                "`sizes` should be positive and `full_share` in (0, 1]. "
                f"Received: sizes={list(sizes)}, full_share={full_share}"
            )
        self.autocast = False  # Ids which arrive as floats would lose digits.
        self._init_seed = seed
        self._generator = keras.random.SeedGenerator(seed)

    @property
    def features(self) -> tuple[Any, ...]:
        """The features of `embeddings`."""
        return self.embeddings.features

    def build(self, input_shape: Any) -> None:
        """Builds the embeddings."""
        if not self.embeddings.built:
            self.embeddings.build(input_shape)
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns the embeddings, in training with trailing columns set to zero."""
        vectors = self.embeddings(inputs)
        if not training:
            return vectors
        width = vectors.shape[-1]
        smaller = [size for size in self.sizes if size < width]
        if not smaller:
            return vectors
        draws = keras.random.uniform((ops.shape(vectors)[0],), seed=self._generator)
        # The first `full_share` of the unit interval is for all columns, the rest in equal parts for the others.
        part = ops.floor((draws - self.full_share) / (1 - self.full_share) * len(smaller))
        index = ops.cast(
            ops.where(draws < self.full_share, ops.full_like(draws, len(smaller)), part), "int32"
        )
        masks = np.arange(width) < np.array([*smaller, width])[:, None]
        mask = ops.take(ops.convert_to_tensor(masks.astype("float32")), index, axis=0)
        return vectors * ops.cast(mask, vectors.dtype)[:, None, :]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Returns the output shape of `embeddings`."""
        return self.embeddings.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "embeddings": keras.saving.serialize_keras_object(self.embeddings),
            "sizes": list(self.sizes),
            "full_share": self.full_share,
            "seed": self._init_seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NestedEmbeddings":
        """Makes the layer from `get_config()`."""
        config = dict(config)
        embeddings = keras.saving.deserialize_keras_object(config.pop("embeddings"))
        return cls(embeddings, **config)
