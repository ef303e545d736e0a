"""Where and how a model is pushed."""

from typing import Literal

from pydantic import Field

from mlet_tf.config.base import Group
from mlet_tf.config.types import Folder, Name


class ServingConfig(Group):
    """Where and how the model is pushed."""

    model_name: Name = Field("ctr", description="Name under which a server offers the model.")
    push_to: Folder | None = Field(
        None, description="Folder of the versions; null means `<output>/serving/<model_name>`."
    )
    keep: int = Field(3, ge=1, le=10_000, description="Versions to keep.")
    warmup_rows: int = Field(
        32, ge=0, le=1000, description="Rows in the warm-up file; TensorFlow Serving takes 1,000 at most."
    )
    table_dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        "float32",
        description="Dtype of the pushed tables. `float16` and `bfloat16` halve the collapsed ones; `int8`, with a "
        "scale and an offset a row, takes `d + 4` bytes a row instead of `4 d`.",
    )
    infra_validation: Literal["auto", "model_server", "saved_model"] = Field(
        "auto",
        description="`model_server` starts a real TensorFlow Serving (`InfraValidator`), `saved_model` answers real "
        "rows in a fresh process, `auto` takes the first where a local docker answers.",
    )
