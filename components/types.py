"""Types in the interface of TFX's executors."""

from typing import Any, TypeAlias

from tfx import types

# Artifacts by key.
Artifacts: TypeAlias = dict[str, list[types.Artifact]]

# Execution properties by key: integers, floats and texts, some of which are JSON.
Properties: TypeAlias = dict[str, Any]

# Argument of a component's function: nested dicts of plain values, as JSON has them.
CustomConfig: TypeAlias = dict[str, Any]
