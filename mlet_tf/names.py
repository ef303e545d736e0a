"""Names that configurations share with what they configure; light, so that reading one needs no Keras."""

from typing import Literal, get_args

Initialization = Literal["authors", "variance_preserving", "orthogonal"]
INITIALIZATIONS: tuple[Initialization, ...] = get_args(Initialization)

Metric = Literal["auc", "logloss", "calibration", "normalized_entropy"]

Optimizer = Literal["sgd", "adagrad", "row_wise_adagrad", "lazy_adam"]
