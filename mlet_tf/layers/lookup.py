"""What an embedding of one feature is, whatever its table is made of."""

from typing import Any

import keras
from keras import ops

from mlet_tf.layers import factors


class Lookup(keras.layers.Layer):
    """Base of layers from integer ids of any rank to embeddings.

    Shapes, masks and ragged inputs are those of `keras.layers.Embedding`. Subclasses define `_embed(ids)`.

    Args:
        input_dim: Vocabulary size `V`.
        output_dim: Embedding dimension `d`.
        mask_zero: Whether id 0 is padding.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, input_dim: int, output_dim: int, mask_zero: bool, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        self.input_dim = factors.positive_int("input_dim", input_dim)
        self.output_dim = factors.positive_int("output_dim", output_dim)
        self.mask_zero = bool(mask_zero)
        self.supports_masking = self.mask_zero
        self.autocast = False  # Ids which arrive as floats would lose digits.

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, see `keras.layers.Layer`."""
        return super().__call__(factors.without_wrapping(inputs), *args, **kwargs)

    def call(self, inputs: Any) -> Any:
        """Returns the embeddings of the ids."""
        if factors.on_tensorflow():
            import tensorflow as tf

            if isinstance(inputs, tf.RaggedTensor):
                return tf.ragged.map_flat_values(self._embed, inputs)
        return self._embed(inputs)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns where ids are not 0, with `mask_zero`."""
        return ops.not_equal(inputs, 0) if self.mask_zero else None

    def compute_output_shape(self, input_shape: Any) -> tuple:
        """Returns the input shape with `output_dim` appended."""
        return (*input_shape, self.output_dim)

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        """Returns the symbolic output."""
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype, ragged=getattr(inputs, "ragged", False))

    def _embed(self, ids: Any) -> Any:
        raise NotImplementedError
