"""Type aliases for tensors, shapes, Keras arguments and JSON. Importing them loads no package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

# A tensor of the backend that Keras runs on, or a symbolic one; on TensorFlow it may be ragged or sparse.
Tensor: TypeAlias = Union["tf.Tensor", "tf.RaggedTensor", "tf.SparseTensor", "keras.KerasTensor"]

# A gradient: dense, or on TensorFlow the rows of a table.
Gradient: TypeAlias = Union["tf.Tensor", "tf.IndexedSlices"]

# What a model is called with: tensors or arrays, alone or in lists, tuples and dicts.
Inputs: TypeAlias = Union[Tensor, "np.ndarray", Sequence["Inputs"], Mapping[str, "Inputs"]]

# Sizes of the axes, None where one is not known.
Shape: TypeAlias = Sequence[int | None]

# A value of JSON, and an object whose keys say what each value is.
JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None
JsonObject: TypeAlias = dict[str, Any]

# What `get` of `keras.initializers`, `keras.regularizers` and `keras.constraints` takes.
Identifier: TypeAlias = str | dict[str, object] | Callable[..., Tensor] | None
