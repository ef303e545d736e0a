"""`mlet-tf collapse`: Keras files."""

from pathlib import Path

import click
from mlet_tf.pipeline.cli._keras_files import load_keras_file

from mlet_tf.errors import InputError
from mlet_tf.outputs import output_file
from mlet_tf.storage import aside_path, writing
from mlet_tf.units import bytes_text


@click.command()
@click.argument("model", type=click.Path())
@click.argument("output", type=click.Path())
@click.option(
    "--table_dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
    help="Dtype of the collapsed tables; int8 has a scale and an offset for each row.",
)
@click.option("--force", is_flag=True, help="Overwrite OUTPUT.")
def collapse(model: str, output: str, table_dtype: str, force: bool) -> None:
    """Collapse the Keras file MODEL into OUTPUT (.keras).

    Custom layers other than this package's have to be importable from the Keras file.
    """
    if not Path(model).is_file():
        raise InputError(f"{model}: no such file; expected a .keras file")
    target = output_file(output, ".keras", replace=force)
    if target.exists() and target.samefile(model):
        raise InputError(f"{output}: the output should be another file than the model")
    from mlet_tf.collapse import collapse_model, collapse_report
    from mlet_tf.quantize import quantization_report, quantize_model

    trained = load_keras_file(model)
    tables = collapse_report(trained)
    served = collapsed = collapse_model(trained)
    quantized = {}
    if table_dtype != "float32":
        served = quantize_model(collapsed, table_dtype)
        quantized = {record["name"]: record for record in quantization_report(collapsed, served)}
    aside = aside_path(target)
    try:
        with writing(output):
            served.save(aside)
            aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    for table in tables:
        shape = f"[{table['rows']:,}, {table['hidden_dim']} -> {table['output_dim']}]"
        before, after = bytes_text(table["bytes_before"]), bytes_text(table["bytes_after"])
        line = f"{table['name']} {shape}: {before} -> {after}"
        if narrow := quantized.get(table["name"]):
            line += (
                f" -> {bytes_text(narrow['bytes_after'])}, {table_dtype} rows off by at most "
                f"{narrow['max_abs_difference']:.2g}"
            )
        click.echo(line)
