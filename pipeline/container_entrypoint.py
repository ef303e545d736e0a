"""Entry point of the pipeline's containers on Kubeflow: TFX's own, with two fixes.

`python -P -m mlet_tf.pipeline.container_entrypoint` takes the arguments of
`tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor`.

*   The types of input artifacts. Kubeflow's driver leaves them empty (an empty `instanceSchema`), and
    TFX cannot tell an Examples from a Model then. The component's own input definitions, which are
    among the arguments, have them.
*   A user's mistake ends with one line in the pod's log, not with a traceback.
"""

import json
import runpy
import sys

from mlet_tf.errors import GateError, InputError
from mlet_tf.storage import add_file_systems
from mlet_tf.types import JsonObject

_TFX_ENTRYPOINT = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
_INVOCATION, _INPUTS = "--json_serialized_invocation_args", "--json_serialized_inputs_spec_args"


def with_artifact_types(invocation: JsonObject, definitions: JsonObject) -> JsonObject:
    """Gives input artifacts the types that the component declares.

    Args:
        invocation: Kubeflow's `ExecutorInput`, as JSON; it is changed in place.
        definitions: The component's `ComponentInputsSpec`, as JSON.

    Returns:
        `invocation`.
    """
    artifacts = invocation.get("inputs", {}).get("artifacts", {})
    for name, found in artifacts.items():
        for artifact in found.get("artifacts", []):
            if not any(artifact.get("type", {}).values()):
                artifact["type"] = definitions["artifacts"][name]["artifactType"]
    return invocation


def main() -> None:
    """Runs the executor that the arguments name."""
    invocation, inputs = (sys.argv.index(flag) + 1 for flag in (_INVOCATION, _INPUTS))
    mended = with_artifact_types(json.loads(sys.argv[invocation]), json.loads(sys.argv[inputs]))
    sys.argv[invocation] = json.dumps(mended)
    add_file_systems()  # TFX opens artifacts itself.
    try:
        runpy.run_module(_TFX_ENTRYPOINT, run_name="__main__", alter_sys=True)
    except (InputError, GateError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
