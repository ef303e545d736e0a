"""Names shared by configurations and the code that they configure; reading one needs no Keras."""

from typing import Literal, get_args

Initialization = Literal["fixed_variance", "variance_preserving", "orthogonal"]
INITIALIZATIONS: tuple[Initialization, ...] = get_args(Initialization)
# Older configurations, records and .keras files call the first one after the authors of the MLET paper.
RENAMED_INITIALIZATIONS: dict[str, Initialization] = {"authors": "fixed_variance"}

Metric = Literal["auc", "logloss", "calibration", "normalized_entropy"]

Optimizer = Literal["sgd", "adagrad", "row_wise_adagrad", "lazy_adam"]

CompressionMethod = Literal["columns", "bits", "rows"]
COMPRESSION_METHODS: tuple[CompressionMethod, ...] = get_args(CompressionMethod)
