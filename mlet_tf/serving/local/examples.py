"""Requests on tf.Examples: Classify, Regress and MultiInference, by TF Serving's rules."""

from collections.abc import Mapping, Sequence

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.graph import Graph, SignatureDef
from mlet_tf.serving.local.status import invalid
from mlet_tf.serving.local.tensors import Tensor

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def run_examples(
    graph: Graph, signatures: Sequence[SignatureDef], examples: input_pb2.Input
) -> tuple[dict[str, Tensor], int]:
    """Feeds serialised examples to the one input of each signature, all in one run.

    Args:
        graph: what to run.
        signatures: what was checked with `check_classify` or `check_regress`.
        examples: the request's.

    Returns:
        The outputs by the name of the graph's tensor, and the number of examples.

    Raises:
        StatusError: if there are no examples, or the graph refuses them.
    """
    rows = _serialized(examples)
    values = np.empty(len(rows), object)
    values[:] = rows
    tensor = Tensor(types_pb2.DT_STRING, values, (len(rows),))
    feeds = {signature.inputs["inputs"].name: tensor for signature in signatures}
    names = sorted({info.name for signature in signatures for info in signature.outputs.values()})
    return dict(zip(names, graph.run(feeds, names), strict=True)), len(rows)


def _serialized(examples: input_pb2.Input) -> list[bytes]:
    kind = examples.WhichOneof("kind")
    if kind == "example_list":
        rows = [example.SerializeToString() for example in examples.example_list.examples]
    elif kind == "example_list_with_context":
        # Two consecutive serialised messages are read as one, merged.
        context = examples.example_list_with_context.context.SerializeToString()
        rows = [
            context + example.SerializeToString() for example in examples.example_list_with_context.examples
        ]
    else:
        rows = []
    if not rows:
        raise invalid("Input is empty.")
    return rows


def check_classify(signature: SignatureDef) -> None:
    """Refuses a signature that cannot classify.

    Raises:
        StatusError: INVALID_ARGUMENT with what it lacks.
    """
    _check_sizes(signature, most_outputs=2)
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature}")
    if not {"classes", "scores"} & set(signature.outputs):
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {signature}'
        )


def check_regress(signature: SignatureDef) -> None:
    """Refuses a signature that cannot regress.

    Raises:
        StatusError: INVALID_ARGUMENT with what it lacks.
    """
    _check_sizes(signature, most_outputs=1)
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")


def _check_sizes(signature: SignatureDef, most_outputs: int) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if not 1 <= len(signature.outputs) <= most_outputs:
        if most_outputs == 1:
            raise invalid("Expected one output Tensor.")
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")


def classifications(
    signature: SignatureDef, outputs: Mapping[str, Tensor], examples: int
) -> classification_pb2.ClassificationResult:
    """The result of a classify signature, from what `run_examples` gave.

    Raises:
        StatusError: INVALID_ARGUMENT if the outputs are not classes and scores of the examples.
    """
    found = {}
    for alias, dtype in (("classes", types_pb2.DT_STRING), ("scores", types_pb2.DT_FLOAT)):
        if alias in signature.outputs:
            output = outputs[signature.outputs[alias].name]
            _check_classify_output(alias, dtype, output, examples)
            found[alias] = output.array
    classes, scores = found.get("classes"), found.get("scores")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{classes.shape[1]} vs. {scores.shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    width = next(iter(found.values())).shape[1]
    for row in range(examples):
        target = result.classifications.add()
        for column in range(width):
            item = target.classes.add()
            if classes is not None:
                item.label = classes[row, column].decode("utf-8", "replace")
            if scores is not None:
                item.score = scores[row, column]
    return result


def _check_classify_output(alias: str, expected: int, output: Tensor, examples: int) -> None:
    if len(output.shape) != 2:
        raise invalid(
            f"Expected Tensor shape: [batch_size num_classes] but got {tensors.shape_text(output.shape)}"
        )
    if output.dtype != expected:
        raise invalid(
            f"Expected {alias} Tensor of {types_pb2.DataType.Name(expected)}. "
            f"Got: {types_pb2.DataType.Name(output.dtype)}"
        )
    if output.shape[0] != examples:
        raise invalid(f"Expected {alias} output batch size of {examples}. Got: {output.shape[0]}")


def regressions(
    signature: SignatureDef, outputs: Mapping[str, Tensor], examples: int
) -> regression_pb2.RegressionResult:
    """The result of a regress signature, from what `run_examples` gave.

    Raises:
        StatusError: INVALID_ARGUMENT if the output is not one float for each example.
    """
    output = outputs[signature.outputs["outputs"].name]
    shape = output.shape
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{tensors.shape_text(shape)}"
        )
    if shape[0] != examples:
        raise invalid(f"Input batch size did not match output batch size: {examples} vs. {shape[0]}")
    if output.dtype != types_pb2.DT_FLOAT:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {types_pb2.DataType.Name(output.dtype)}")
    result = regression_pb2.RegressionResult()
    for value in output.values.tolist():
        result.regressions.add(value=value)
    return result
