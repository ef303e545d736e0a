"""The pipeline on Kubeflow."""

from typing import Self

from pydantic import Field, model_validator

from mlet_tf.config.base import Group, GroupError
from mlet_tf.config.types import Folder, Text, Word


class NodeConfig(Group):
    """How the container of a node runs; null takes the value of `kubeflow.defaults`, then the cluster's."""

    cpu: float | None = Field(None, gt=0, le=10_000, description="Cores, requested and at most.")
    memory_gb: float | None = Field(
        None, gt=0, le=100_000, description="Memory in GB, requested and at most."
    )
    accelerator: Word | None = Field(
        None, description="Resource name of an accelerator, such as `nvidia.com/gpu`."
    )
    accelerator_count: int | None = Field(None, ge=1, le=1000, description="Accelerators of that name.")
    retries: int | None = Field(
        None, ge=0, le=1000, description="How often a failed container is started again."
    )
    cache: bool | None = Field(
        None,
        description="Whether the node is left out where its inputs are those of an earlier run; null follows "
        "`enable_cache`.",
    )

    @model_validator(mode="after")
    def _accelerator_is_counted(self) -> Self:
        if (self.accelerator is None) != (self.accelerator_count is None):
            raise GroupError("accelerator", "and 'accelerator_count' go together; give both or neither")
        return self


class KubeflowConfig(Group):
    """Kubeflow Pipelines; see `docs/kubeflow.md`."""

    image: Word | None = Field(None, description="Image of all containers, with this package installed.")
    pipeline_root: Folder | None = Field(
        None, description="Where artifacts go, a URI that containers and Kubeflow can write to."
    )
    work: Folder | None = Field(
        None,
        description="Where the trainer's container keeps checkpoints; null means `<pipeline_root>/work`. One that "
        "outlives the container lets a retry go on from them.",
    )
    baseline_model: Folder | None = Field(
        None,
        description="Model artifact that the gate compares with, the last blessed one; null compares with none. "
        "Kubeflow cannot find it by itself.",
    )
    defaults: NodeConfig = Field(NodeConfig(), description="Every node's resources, retries and caching.")
    nodes: dict[Text, NodeConfig] = Field({}, description="The same by node name, where a node differs.")
