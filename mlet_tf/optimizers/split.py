"""One optimizer for tables, one for projections, one for the dense network."""

from collections.abc import Iterable, MutableMapping
from typing import Any

import keras

from mlet_tf.layers.roles import Role, variable_role


@keras.saving.register_keras_serializable(package="mlet_tf")
class RoleOptimizerMap:
    """Chooses a variable's optimizer by its role; made by `split_optimizer`."""

    def __init__(self, optimizers: dict[str, keras.optimizers.Optimizer]) -> None:
        self._optimizers = optimizers

    def __call__(self, variable: keras.Variable) -> keras.optimizers.Optimizer:
        """Returns the optimizer of a variable."""
        return self._optimizers[variable_role(variable)]

    def of_role(self, role: Role) -> keras.optimizers.Optimizer:
        """Returns the optimizer of a role."""
        return self._optimizers[role]

    def values(self) -> Iterable[keras.optimizers.Optimizer]:
        """Returns the optimizers, which `MultiOptimizer` registers before it is built."""
        return self._optimizers.values()

    def get_config(self) -> dict[str, Any]:
        """Returns the distinct optimizers and the one of each role, so that a shared one stays shared."""
        distinct = list(dict.fromkeys(self._optimizers.values()))
        return {
            "optimizers": [keras.saving.serialize_keras_object(o) for o in distinct],
            "roles": {role: distinct.index(o) for role, o in self._optimizers.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RoleOptimizerMap":
        """Rebuilds the map."""
        optimizers = [keras.saving.deserialize_keras_object(o) for o in config["optimizers"]]
        return cls({role: optimizers[i] for role, i in config["roles"].items()})


@keras.saving.register_keras_serializable(package="mlet_tf")
class SplitOptimizer(keras.optimizers.MultiOptimizer):
    """A `keras.optimizers.MultiOptimizer` whose file holds the state once; made by `split_optimizer`.

    Keras's own class writes the state of its parts twice, as its variables and as its children's, and
    `tf.train.Checkpoint` does not find the parts, so it silently loses their state.
    """

    def __init__(self, optimizer_map: RoleOptimizerMap, **kwargs: Any) -> None:
        super().__init__(optimizer_map, **kwargs)
        for i, optimizer in enumerate(self.optimizers):
            setattr(self, f"_part_{i}", optimizer)  # TensorFlow tracks attributes, not lists.

    def of_role(self, role: Role) -> keras.optimizers.Optimizer:
        """Returns the part for tables, projections or the dense network."""
        return self._optimizer_map.of_role(role)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Saves the counter; Keras saves the parts as children."""
        for i, variable in enumerate(self._variables):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Restores the counter."""
        for i, variable in enumerate(self._variables):
            variable.assign(store[str(i)])


def split_optimizer(
    *,
    tables: str | keras.optimizers.Optimizer,
    dense: str | keras.optimizers.Optimizer,
    projections: str | keras.optimizers.Optimizer | None = None,
) -> SplitOptimizer:
    """Combines an optimizer each for tables, projections and the dense network.

    The groups are those of `mlet_tf.layers.variable_role`. Each optimizer keeps its schedule, weight decay and
    clipping, which act on its group alone (`global_clipnorm` too). The result has no `learning_rate`: set those of
    `result.optimizers`. It has its own step counter, `result.iterations`.

    Args:
        tables: Optimizer, or its name, of the factors with a row per id, direct tables included.
        dense: Optimizer of everything else.
        projections: Optimizer of the small factors; by default that of `dense`.

    Returns:
        A Keras optimizer.

    Example:
    >>> optimizer = split_optimizer(
    ...     tables=RowWiseAdagrad(0.05), projections=SparseAdagrad(0.01), dense=keras.optimizers.Adam(1e-3)
    ... )
    """
    tables, dense = keras.optimizers.get(tables), keras.optimizers.get(dense)
    projections = dense if projections is None else keras.optimizers.get(projections)
    return SplitOptimizer(RoleOptimizerMap({"table": tables, "projection": projections, "dense": dense}))
