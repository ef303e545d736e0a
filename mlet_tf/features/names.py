"""Names of the outputs of `preprocessing_fn`, which are the inputs of models, for a batch of B rows."""

DENSE = "dense_features"  # float32 `[B, D]`
SPARSE = "sparse_features"  # Ids `[B, F]`
LABEL = "label"  # float32 `[B]`
FREQUENCY = "frequency"  # int64 `[B, S]`, indices into `FREQUENCY_BUCKETS`

MODEL_INPUTS = (DENSE, SPARSE)
FREQUENCY_BUCKETS = ("frequent", "rare", "oov", "missing")
