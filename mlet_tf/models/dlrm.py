"""DLRM: bottom MLP, embeddings, dot interaction, top MLP."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from keras import ops

from mlet_tf.features.names import DENSE, MODEL_INPUTS, SPARSE
from mlet_tf.layers import DotInteraction, EmbeddingCollection, EmbeddingFeature
from mlet_tf.models.top import SkipTop

_PARTS = ("embedding_layer", "bottom_stack", "feature_interaction", "top_stack")
_TASK_LISTS = ("metrics", "prediction_metrics", "label_metrics", "loss_metrics")


@keras.saving.register_keras_serializable(package="mlet_tf")
class DLRM(tfrs.experimental.models.Ranking):
    """Deep learning recommendation model on tensorflow-recommenders.

    With dense features `x` and embeddings `e_1 ... e_F`, the click probability is
    `top([bottom(x), interaction(e_1, ..., e_F, bottom(x))])`. The parts are those of
    `tfrs.experimental.models.Ranking` and can be exchanged in the same way. Unlike it, this model works for batches
    of one row and of none, takes fused embeddings `[B, F, d]`, can be saved and loaded, scales the loss for float16,
    and reports the mean loss of an epoch.

    Loss and metrics belong to the task, so `compile` takes an optimizer but no `loss` or `metrics`.

    Args:
        embedding_layer: Layer from `sparse_features` to `[B, F, d]`, such as `EmbeddingCollection`, or to a
            dict or list of `[B, d]` or `[B, 1, d]`.
        bottom_stack: Layer from `dense_features` to `[B, d]`; by default an MLP of 256, 64 and 16 units.
        feature_interaction: Layer on the list of all `[B, d]` vectors; by default `DotInteraction`.
        top_stack: Layer to probabilities `[B, 1]`; by default an MLP of 512, 256 and 1 units.
        task: Loss and metrics; by default binary cross-entropy with streaming `auc` and `logloss`.
        jit_compile_dense: Whether XLA compiles everything but the embeddings in training. Keep the batch size fixed:
            it compiles for each size.
        **kwargs: Arguments of `keras.Model`.

    Input shape:
        Dict of `dense_features` `[B, D]`, where D may be 0, and `sparse_features`, ids `[B, F]` or other inputs of
        the embedding layer.

    Output shape:
        `[B]`, click probabilities.

    Example:
        >>> model = build_dlrm(13, [EmbeddingFeature("site", 5000)], output_dim=16, hidden_dim=64)
        >>> model({"dense_features": np.zeros((2, 13)), "sparse_features": np.array([[7], [4999]])}).shape
        TensorShape([2])

    References:
        Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
        arXiv 1906.00091.
    """

    def __init__(
        self,
        embedding_layer: keras.layers.Layer,
        bottom_stack: keras.layers.Layer | None = None,
        feature_interaction: keras.layers.Layer | None = None,
        top_stack: keras.layers.Layer | None = None,
        task: tfrs.tasks.Task | None = None,
        jit_compile_dense: bool = False,
        **kwargs: Any,
    ) -> None:
        # Ranking's own constructor takes neither name nor dtype, and its default task needs Keras 2.
        super(tfrs.experimental.models.Ranking, self).__init__(**kwargs)
        self.autocast = False  # Ids that arrive as floats would lose digits.
        self._embedding_layer = embedding_layer
        self._bottom_stack = bottom_stack or mlp([256, 64, 16], "relu", self.dtype_policy)
        self._feature_interaction = feature_interaction or DotInteraction(dtype=self.dtype_policy)
        self._top_stack = top_stack or mlp([512, 256, 1], "sigmoid", self.dtype_policy)
        self._has_default_task = task is None
        self._task = task or tfrs.tasks.Ranking(
            loss=keras.losses.BinaryCrossentropy(),
            metrics=[keras.metrics.AUC(name="auc"), keras.metrics.BinaryCrossentropy(name="logloss")],
        )
        self.jit_compile_dense = bool(jit_compile_dense)
        self._compiled_head = tf.function(self._head, jit_compile=True) if jit_compile_dense else None

    @property
    def bottom_stack(self) -> keras.layers.Layer:
        """The layer on `dense_features`."""
        return self._bottom_stack

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Builds all parts."""
        shapes = dict(input_shape)
        sparse = shapes[SPARSE]
        if isinstance(sparse, Mapping):
            ids = {name: keras.KerasTensor(shape, "int64") for name, shape in sparse.items()}
        else:
            ids = keras.KerasTensor(sparse, "int64")
        self._head(keras.KerasTensor(shapes[DENSE], "float32"), self._embeddings(ids))
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns click probabilities `[B]`."""
        missing = set(MODEL_INPUTS) - set(inputs)
        if missing:
            raise ValueError(f"`inputs` should have {DENSE} and {SPARSE}. Received: {sorted(inputs)}")
        embeddings = self._embeddings(inputs[SPARSE])
        head = self._compiled_head if training and self._compiled_head is not None else self._head
        return head(inputs[DENSE], embeddings, training=training)

    def compute_output_shape(self, input_shape: Mapping[str, Any]) -> tuple[int | None]:
        """Returns `(batch,)`."""
        return (input_shape[DENSE][0],)

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Sets the optimizer; the other arguments are those of `keras.Model.compile`.

        Raises:
            ValueError: Loss or metrics are given here, where they would be ignored.
        """
        weighted = kwargs.get("weighted_metrics")
        if loss is not None or metrics or weighted:
            raise ValueError(
                "`loss` and `metrics` should be given to the model's `task`, not to `compile()`. "
                f"Received: loss={loss}, metrics={metrics}, weighted_metrics={weighted}"
            )
        super().compile(optimizer=optimizer, **kwargs)
        self._compile_options = kwargs

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `compile()`, None before it was called."""
        if not self.compiled:
            return None
        return keras.saving.serialize_keras_object({"optimizer": self.optimizer, **self._compile_options})

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compiles as `get_compile_config()` says."""
        self.compile(**keras.saving.deserialize_keras_object(dict(config)))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(self, inputs: Sequence[Any], training: bool = False) -> tf.Tensor:
        """Computes the loss of a batch and updates the metrics.

        Args:
            inputs: `(features, labels)` or `(features, labels, sample_weight)`.
            training: Whether the model is trained.

        Returns:
            Mean loss, divided by the number of replicas.
        """
        features, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(inputs)
        predictions = self(features, training=training)
        # A trailing axis of one, or losses and weights would be averaged over the batch too early.
        loss = self._task(
            ops.reshape(labels, (-1, 1)),
            ops.reshape(predictions, (-1, 1)),
            sample_weight=None if sample_weight is None else ops.reshape(sample_weight, (-1, 1)),
        )
        if loss.shape.rank == 0:  # Keras has reduced it, and divided it by the number of replicas.
            return loss
        return tf.reduce_mean(loss) / tf.distribute.get_strategy().num_replicas_in_sync

    def train_step(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Takes one step of the optimizer."""
        with tf.GradientTape() as tape:
            total = self._total_loss(inputs, training=True)
            scaled = self.optimizer.scale_loss(total)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Evaluates one batch."""
        self._total_loss(inputs, training=False)
        return {metric.name: metric.result() for metric in self.metrics}

    def random_inputs(self, rows: int, seed: int = 0) -> dict[str, np.ndarray] | None:
        """Makes up inputs of a built model.

        Args:
            rows: Number of rows.
            seed: Seed of the generator.

        Returns:
            Standard normal `dense_features` and uniform ids; None if the embedding layer is not an
            `EmbeddingCollection`, whose ranges of ids alone are known.
        """
        if not isinstance(self._embedding_layer, EmbeddingCollection):
            return None
        generator = np.random.default_rng(seed)
        limits = [feature.input_dim for feature in self._embedding_layer.features]
        width = self._build_shapes_dict["input_shape"][DENSE][-1]
        return {
            DENSE: generator.normal(size=(rows, width)).astype("float32"),
            SPARSE: generator.integers(0, limits, (rows, len(limits))),
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        parts = {name: keras.saving.serialize_keras_object(getattr(self, f"_{name}")) for name in _PARTS}
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            **parts,
            "task": None if self._has_default_task else _task_config(self._task),
            "jit_compile_dense": self.jit_compile_dense,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "DLRM":
        """Makes a model from `get_config()`."""
        config = dict(config)
        for name in (*_PARTS, "dtype"):
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        if config["task"] is not None:
            arguments = keras.saving.deserialize_keras_object(config["task"], custom_objects=custom_objects)
            config["task"] = tfrs.tasks.Ranking(**arguments)
        return cls(**config)

    def _embeddings(self, ids: Any) -> Any:
        """Returns embeddings as `[B, F, d]`."""
        embeddings = self._embedding_layer(ids)
        if not isinstance(embeddings, Mapping | list | tuple):
            return embeddings
        vectors = keras.tree.flatten(embeddings)
        return ops.stack([ops.reshape(vector, (-1, vector.shape[-1])) for vector in vectors], axis=1)

    def _head(self, dense_features: Any, embeddings: Any, training: bool | None = None) -> Any:
        """Everything but the embeddings."""
        dense = self._bottom(dense_features, embeddings, training)
        vectors = ops.concatenate([embeddings, ops.expand_dims(ops.cast(dense, embeddings.dtype), 1)], axis=1)
        if not isinstance(self._feature_interaction, DotInteraction):
            vectors = ops.unstack(vectors, axis=1)
        interaction = self._feature_interaction(vectors)
        top_inputs = ops.concatenate([dense, ops.cast(interaction, dense.dtype)], axis=1)
        return ops.reshape(_call(self._top_stack, top_inputs, training), (-1,))

    def _bottom(self, dense_features: Any, embeddings: Any, training: bool | None) -> Any:
        if dense_features.shape[-1] != 0:
            return _call(self._bottom_stack, dense_features, training)
        # Without dense features a learned constant takes their place.
        constant = _call(self._bottom_stack, ops.ones((1, 1)), training)
        return constant + ops.zeros_like(embeddings[:, 0, :])

    def _total_loss(self, inputs: Sequence[Any], training: bool) -> tf.Tensor:
        loss = self.compute_loss(inputs, training=training)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        total = loss + sum(self.losses) / replicas
        rows = tf.shape(keras.tree.flatten(inputs[0])[0])[0]
        self._loss_tracker.update_state(total * replicas, sample_weight=rows)
        return total


def build_dlrm(
    num_dense: int,
    features: Sequence[EmbeddingFeature],
    output_dim: int,
    hidden_dim: int | Sequence[int] | None = None,
    bottom_units: Sequence[int] = (512, 256),
    top_units: Sequence[int] = (512, 256),
    *,
    dot_skip: bool = True,
    jit_compile_dense: bool = False,
    task: tfrs.tasks.Task | None = None,
    dtype: str | keras.DTypePolicy | None = None,
    name: str = "dlrm",
    embedding_class: Callable[..., keras.layers.Layer] = EmbeddingCollection,
    **embedding_options: Any,
) -> DLRM:
    """Builds a DLRM from dimensions.

    Args:
        num_dense: Width of `dense_features`.
        features: The categorical features, in the order of the columns of `sparse_features`.
        output_dim: Embedding dimension `d`, also the width of the bottom MLP's output.
        hidden_dim: Hidden dimension `k`; None makes all embeddings direct.
        bottom_units: Widths of the bottom MLP before its last layer.
        top_units: Widths of the top MLP before its last layer.
        dot_skip: Whether a linear path leads from the dot products to the logit beside the top MLP, see `SkipTop`;
            without it the model is the paper's.
        jit_compile_dense: See `DLRM`.
        task: See `DLRM`.
        dtype: Dtype policy of all layers, such as `"mixed_bfloat16"`. Probabilities are float32.
        name: Name of the model.
        embedding_class: Makes the embeddings; it takes the arguments of `EmbeddingCollection`.
        **embedding_options: Further arguments of `embedding_class`, such as `direct_threshold` and
            `initialization`.

    Returns:
        The model, not compiled.
    """
    dtype = keras.dtype_policies.get(dtype)
    model = DLRM(
        embedding_layer=embedding_class(
            features, output_dim, hidden_dim, dtype=dtype, name="embeddings", **embedding_options
        ),
        bottom_stack=mlp([*bottom_units, output_dim], "relu", dtype, name="bottom"),
        feature_interaction=DotInteraction(dtype=dtype, name="interaction"),
        top_stack=(
            SkipTop(top_units, output_dim, dtype=dtype, name="top")
            if dot_skip
            else mlp([*top_units, 1], "sigmoid", dtype, name="top")
        ),
        task=task,
        jit_compile_dense=jit_compile_dense,
        dtype=dtype,
        name=name,
    )
    model.build({DENSE: (None, num_dense), SPARSE: (None, len(features))})
    return model


def mlp(
    units: Sequence[int],
    final_activation: str,
    dtype: str | keras.DTypePolicy | None = None,
    name: str | None = None,
) -> keras.Sequential:
    """Makes a stack of dense layers, ReLU between them; probabilities are computed in float32."""
    last_dtype = "float32" if final_activation == "sigmoid" else dtype
    return keras.Sequential(
        [keras.layers.Dense(n, "relu", dtype=dtype) for n in units[:-1]]
        + [keras.layers.Dense(units[-1], final_activation, dtype=last_dtype)],
        name=name,
    )


def _call(layer: keras.layers.Layer, inputs: Any, training: bool | None) -> Any:
    """Calls a layer, with `training` where it takes it."""
    return layer(inputs, training=training) if layer._call_has_training_arg else layer(inputs)


def _task_config(task: tfrs.tasks.Ranking) -> dict[str, Any]:
    values = {"loss": task._loss, "metrics": task._ranking_metrics}
    values |= {name: getattr(task, f"_{name}") for name in _TASK_LISTS[1:]}
    return {name: keras.saving.serialize_keras_object(value) for name, value in values.items()}
