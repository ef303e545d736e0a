"""Base class of embeddings of a single feature."""

from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.layers._arguments import positive_int
from mlet_tf.layers.backend import on_tensorflow
from mlet_tf.layers.ids import as_ids, is_sparse, without_wrapping
from mlet_tf.types import Shape, Tensor


class SingleEmbedding(keras.layers.Layer):
    """Base of layers from integer ids of any rank to embeddings.

    Shapes, masks, ragged and sparse inputs are those of `keras.layers.Embedding`. Subclasses define
    `_embed(ids, training)`.

    Args:
        input_dim: Vocabulary size `V`.
        output_dim: Embedding dimension `d`.
        mask_zero: Whether id 0 is padding.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, input_dim: int, output_dim: int, mask_zero: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_dim = positive_int("input_dim", input_dim)
        self.output_dim = positive_int("output_dim", output_dim)
        self.mask_zero = bool(mask_zero)
        self.supports_masking = self.mask_zero
        self.autocast = False  # Ids that arrive as floats would lose digits.

    def __call__(self, inputs: Tensor | np.ndarray, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the layer, see `keras.layers.Layer`."""
        return super().__call__(without_wrapping(inputs), *args, **kwargs)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns the embeddings of the ids."""
        if on_tensorflow():
            import tensorflow as tf

            if isinstance(inputs, tf.RaggedTensor):
                return tf.ragged.map_flat_values(self._embed, inputs, bool(training))
        return self._embed(inputs, bool(training))

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Returns where ids are not 0, with `mask_zero`."""
        if not self.mask_zero:
            return None
        return ops.not_equal(as_ids(inputs) if is_sparse(inputs) else inputs, 0)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        """Returns the input shape with `output_dim` appended."""
        return (*input_shape, self.output_dim)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the symbolic output."""
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype, ragged=getattr(inputs, "ragged", False))

    def _embed(self, ids: Tensor, training: bool) -> Tensor:
        raise NotImplementedError
