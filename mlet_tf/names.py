"""Names that configurations and layers share; light, so that reading a configuration needs no Keras."""

from typing import Literal, get_args

Initialization = Literal["authors", "variance_preserving", "orthogonal"]
INITIALIZATIONS: tuple[str, ...] = get_args(Initialization)
