"""Absurd values for every key of runs and sweeps: one line that names the key, before anything is run."""

import copy
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.config import PipelineConfig, from_mapping
from mlet_tf.config.reference import keys
from mlet_tf.config.schema_text import schema_of
from mlet_tf.config.sweep import RUN_ONLY, SweepConfig
from mlet_tf.errors import InputError

VALID = {
    PipelineConfig: {"compress": {"budget": {"ratio": 8.0}}},
    SweepConfig: {
        "name": "s",
        "output": "runs/s",
        "sweep": {
            "generated": {},
            "tuning": {"search": {"train.tables.learning_rate": {"low": 0.01, "high": 1.0}}},
            "grid": [{}],
        },
    },
}
# Of several keys one has to be given, so the default of the one above is not right alone.
NEEDED = "compress.budget.ratio"
EVERY_KEY = [(model, key.path) for model in VALID for key in keys(model)]


def node_at(model, path):
    """The JSON schema at the path of a key in the reference."""
    schema = schema_of(model)
    parts = []
    grid = re.match(r"(sweep)\.(grid\[\])\.(.*)", path)  # Its keys are dotted themselves.
    for part in grid.groups() if grid else path.split("."):
        known = schema.known_keys(schema.find(parts))
        parts.append(
            known[0] if part == "<name>" and known else "C1" if part == "<name>" else part.removesuffix("[]")
        )
        if part.endswith("[]"):
            parts.append(0)
    return parts, schema.find(parts)


def with_value(model, parts, value):
    """A configuration that is right but for one value."""
    document = copy.deepcopy(VALID[model])
    node = document
    for part in parts[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
    node[parts[-1]] = value
    return document


def bounds(content):
    """Lowest and highest value of a number, and those of them that are not allowed themselves."""
    low = content.get("minimum", content.get("exclusiveMinimum"))
    high = content.get("maximum", content.get("exclusiveMaximum"))
    return low, high, [content[end] for end in ("exclusiveMinimum", "exclusiveMaximum") if end in content]


def absurd_values(schema, node):
    """Values that a key must not have: of another type, below and above its range, not a number."""
    content = schema.content(node)
    kind = content.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    values = [math.nan, math.inf, -math.inf]
    others = {
        "string": ["", "many", "1", "nan", "true", "0x10"],
        "number": [0, 1, -1, 0.5],
        "boolean": [True, False],
        "array": [[], [1], [None]],
        "object": [{"x": 1}, {"": {}}],
    }
    own = {"number" if kind == "integer" else kind for kind in kinds}
    values += [value for other, wrong in others.items() if other not in own for value in wrong]
    if "properties" not in content and all(option.get("type") != "null" for option in node.get("anyOf", ())):
        values.append(None)
    if kind in ("integer", "number"):
        low, high, excluded = bounds(content)
        values += [low - 1, high + 1, *excluded]
    if "integer" in kinds:
        values += [0.5, 1.0]
    if "string" in kinds:
        values += ["", "a\x00b", "a\nb"]
    if kind == "array":
        values = [value for value in values if value != [] or content.get("minItems")]
        values += [[value] for value in absurd_values(schema, content["items"])]
    return values


def absurd(schema, node):
    """Draws such values."""
    content = schema.content(node)
    drawn = [st.sampled_from(absurd_values(schema, node))]
    if content.get("type") in ("integer", "number"):
        low, high, _ = bounds(content)
        if content["type"] == "integer":
            drawn += [st.integers(max_value=low - 1), st.integers(min_value=high + 1), st.floats()]
        else:
            drawn += [st.floats(max_value=low, exclude_max=True), st.floats(min_value=high, exclude_min=True)]
    if choices := schema.choices(content):
        drawn.append(st.text(max_size=8).filter(lambda text: text not in choices))
    if content.get("type") == "array":
        drawn.append(absurd(schema, content["items"]).map(lambda value: [value]))
    return st.one_of(drawn)


def check_refused(model, path, value):
    parts, _ = node_at(model, path)
    with pytest.raises(InputError) as error:
        from_mapping(model, with_value(model, parts, value))
    lines = str(error.value).splitlines()
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)[1:]
    assert lines and all(f"'{name}" in line and len(line) < 1000 for line in lines)
    assert all("Received: " in line or line.startswith("unknown key") for line in lines)


@pytest.mark.parametrize(("model", "path"), EVERY_KEY, ids=lambda value: getattr(value, "__name__", value))
def test_absurd_values_of_every_key_are_refused_with_a_line_that_names_it(model, path):
    for value in absurd_values(schema_of(model), node_at(model, path)[1]):
        check_refused(model, path, value)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_absurd_value_of_any_key_is_refused_with_a_line_that_names_it(data):
    model, path = data.draw(st.sampled_from(EVERY_KEY))
    check_refused(model, path, data.draw(absurd(schema_of(model), node_at(model, path)[1])))


@pytest.mark.parametrize(("model", "path"), EVERY_KEY, ids=lambda value: getattr(value, "__name__", value))
def test_every_key_has_a_description_a_range_and_a_right_default(model, path):
    key = next(key for key in keys(model) if key.path == path)
    assert len(key.description) > 5 and key.description.endswith(".")
    schema, (parts, node) = schema_of(model), node_at(model, path)
    for leaf in (schema.content(node), schema.content(schema.content(node).get("items", {}))):
        if leaf.get("type") in ("integer", "number"):
            assert {"minimum", "exclusiveMinimum"} & set(leaf), "a lowest value"
            assert {"maximum", "exclusiveMaximum"} & set(leaf), "a highest value"
        if leaf.get("type") == "string":
            assert "allowed" in leaf or schema.choices(leaf), "a word for what the text is"
    if "default" in node and key.group is None and path != NEEDED:
        from_mapping(model, with_value(model, parts, node["default"]))


@pytest.mark.parametrize("model", VALID, ids=lambda model: model.__name__)
def test_defaults_written_out_are_the_defaults(model):
    config = from_mapping(model, VALID[model])
    assert from_mapping(model, config.to_plain()) == config


@pytest.mark.parametrize(
    ("group", "changes", "line"),
    [
        ("sweep", {"seed": [1]}, "unknown key 'sweep.seed'. Did you mean 'seeds'?"),
        (
            "sweep",
            {"generated": None},
            "'data.train' or 'sweep.generated' should be given, one of them. Received: neither",
        ),
        ("data", {"train": "log.tsv"}, "Received: both"),
        ("vocabulary", {"min": 2}, "unknown key 'vocabulary.min'"),
        ("gate", {}, "unknown key 'gate'"),
        (
            "sweep",
            {"split": {"validation_share": 0.5, "test_share": 0.5}},
            "'sweep.split.test_share' and 'validation_share' should leave rows to train on",
        ),
        (
            "sweep",
            {"split": {"method": "column"}},
            "'sweep.split.column' and method 'column' go together; give both or neither. Received: None and 'column'",
        ),
        (
            "sweep",
            {"split": {"column": "part"}},
            "'sweep.split.column' and method 'column' go together; give both or neither. Received: 'part' and 'random'",
        ),
        (
            "sweep",
            {"split": {"method": "column", "column": "part", "parts": {"train": ["a"]}}},
            "'sweep.split.parts' should have lists for train and test. Received: ['train']",
        ),
        (
            "sweep",
            {"split": {"parts": {"test": ["a"]}}},
            "'sweep.split.parts' should be given for method 'column' only. Received: {'test': ('a',)}",
        ),
        (
            "sweep",
            {"split": {"method": "column", "column": "day", "parts": {"train": [1, 2], "test": ["2.0"]}}},
            "'sweep.split.parts.test' should share no value with 'train'. Received: '2' in both",
        ),
        (
            "sweep",
            {"split": {"method": "column", "column": "day", "parts": {"train": [1, "1"], "test": [2]}}},
            "'sweep.split.parts.train'",
        ),
        (
            "sweep",
            {"split": {"method": "column", "column": "day", "parts": {"eval": [1], "test": [2]}}},
            "unknown key 'sweep.split.parts.eval'",
        ),
        (
            "sweep",
            {"tuning": {"search": {"train.dense.learning_rate": {"low": 0.5, "high": 0.1}}}},
            "'sweep.tuning.search.train.dense.learning_rate.high' should be above 'low' (0.5). Received: 0.1",
        ),
        (
            "sweep",
            {"tuning": {"search": {"train.table.learning_rate": {"low": 0.1, "high": 0.5}}}},
            "unknown key 'sweep.tuning.search.train.table.learning_rate'. Did you mean 'train.tables.learning_rate'?",
        ),
        (
            "sweep",
            {"tuning": {"search": {"train.tables.initial_accumulator": {"low": 0.1, "high": 1.0}}}},
            "unknown key 'sweep.tuning.search.train.tables.initial_accumulator'. Did you mean",
        ),
        (
            "sweep",
            {"grid": [{}, {"train.tables.learning_rate": [0.1]}]},
            "'sweep.grid[1].train.tables.learning_rate' should be left out, since 'sweep.tuning.search' has it",
        ),
        (
            "sweep",
            {"grid": [{"embedding": ["mlett"]}]},
            "'sweep.grid[0].embedding[0]' should be 'direct', 'mlet'",
        ),
        (
            "sweep",
            {"grid": [{"model.output_dim": [2, 0]}]},
            "'sweep.grid[0].model.output_dim[1]' should be an integer from 1 to 65,536. Received: 0",
        ),
        ("sweep", {"grid": [{"train.seed": [1]}]}, "unknown key 'sweep.grid[0].train.seed'"),
        ("sweep", {"grid": []}, "'sweep.grid' should be a list of at least 1"),
    ],
)
def test_mistakes_of_a_sweep_name_the_key(group, changes, line):
    document = VALID[SweepConfig]
    with pytest.raises(InputError) as error:
        from_mapping(SweepConfig, document | {group: document.get(group, {}) | changes})
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.split", {"method": "time"}),
        ("data.chunk_bytes", 8192),
        ("train.checkpoint_steps", 5),
        ("train.shuffle_rows", 5),
        ("train.shard_tables", True),
        ("train.seed", 1),
    ],
)
def test_a_sweep_refuses_what_only_a_run_follows(key, value):
    group, name = key.split(".")
    with pytest.raises(InputError) as error:
        from_mapping(SweepConfig, VALID[SweepConfig] | {group: {name: value}})
    assert f"'{key}' should be left out of a sweep: {RUN_ONLY[key]}. Received: " in str(error.value)
