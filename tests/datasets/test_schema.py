"""Schemas: presets, YAML, and one clear message per mistake."""

import dataclasses
import json
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import AVAZU, CRITEO, ClickLogSchema, TimeColumn, load_schema
from mlet_tf.errors import InputError

NAMES = st.lists(
    st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8),
    min_size=6,
    max_size=12,
    unique=True,
).filter(lambda names: not {"hour_of_day", "weekday"} & set(names))


@st.composite
def schemas(draw):
    names = draw(NAMES)
    label, time_name, integer, category, dropped, *rest = names
    order = draw(st.permutations(names))
    time = draw(
        st.none()
        | st.builds(
            TimeColumn,
            name=st.just(time_name),
            format=st.sampled_from(["yymmddhh", "unix_seconds"]),
            derive=st.sampled_from([(), ("weekday",), ("hour_of_day", "weekday")]),
        )
    )
    return ClickLogSchema(
        name="log",
        label=label,
        integers=(integer,),
        categoricals=(category, *rest),
        time=time,
        drop=(dropped,) if time else (dropped, time_name),
        columns=tuple(order),
        separator=draw(st.sampled_from(["\t", ",", ";", "|", "\x01"])),
        header=draw(st.booleans()),
        missing=tuple(draw(st.lists(st.sampled_from(["", "NA", "-1", "\\N"]), unique=True))),
    )


@settings(max_examples=60)
@given(schemas())
def test_a_schema_survives_json_and_yaml(schema):
    assert ClickLogSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    assert ClickLogSchema.from_dict(yaml.safe_load(yaml.safe_dump(schema.to_dict()))) == schema


def test_presets_have_the_published_columns():
    assert CRITEO.columns == ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))
    assert CRITEO.raw_features == CRITEO.columns[1:]
    assert CRITEO.sparse_features == CRITEO.categoricals
    assert (
        ",".join(AVAZU.columns)
        == "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
        "app_category,device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    )
    assert AVAZU.raw_features == ("hour", *AVAZU.categoricals)
    assert AVAZU.sparse_features == (*AVAZU.categoricals, "hour_of_day", "weekday")
    assert load_schema("avazu") is AVAZU


def test_a_yaml_file_gives_a_schema(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text(
        "name: shop\nlabel: bought\nintegers: [price]\ncategoricals: [brand, user]\n"
        "time: {name: at, format: unix_seconds, derive: [weekday]}\nseparator: ','\nheader: true\n"
    )
    schema = load_schema(str(path))
    assert schema.columns == ("bought", "price", "at", "brand", "user")
    assert schema.sparse_features == ("brand", "user", "weekday")
    assert schema.missing == ("",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"separater": ","}, "unknown key 'separater'. Did you mean 'separator'?"),
        ({"time": {"name": "at", "fromat": "x"}}, "unknown key 'fromat'. Did you mean 'format'?"),
        ({"time": {"name": "at", "format": "unix_second"}}, "Did you mean 'unix_seconds'?"),
        ({"time": {"name": "at", "derive": ["week_day"]}}, "Did you mean 'weekday'?"),
        ({"time": "at"}, "`time` should hold the keys"),
        ({"separator": ";;"}, "`separator` should be one ASCII character"),
        ({"separator": "\n"}, "`separator` should be one ASCII character"),
        ({"header": "yes"}, "`header` should be true or false. Received: 'yes'"),
        ({"missing": ["a,b"], "separator": ","}, "`missing` should hold texts that fit into one field"),
        ({"missing": "NA"}, "`missing` should be a list of texts. Received: 'NA'"),
        ({"integers": "price"}, "`integers` should be a list of column names. Received: 'price'"),
        ({"integers": ["price", "price"]}, "should name each column once. Received: 'price' twice"),
        ({"integers": [1]}, "`integers` should hold column names (texts). Received: 1"),
        ({"categoricals": ["brand", "price"]}, "'price' in `integers` and in `categoricals`"),
        (
            {"columns": ["bought", "prize", "brand"]},
            "Received: 'prize', which has none. Did you mean 'price'?",
        ),
        (
            {"columns": ["bought", "price"]},
            "`categoricals` should hold names out of `columns`. Received: 'brand'",
        ),
        ({"integers": [], "categoricals": []}, "at least one integer, categorical or time column"),
        ({"time": {"name": "at"}, "categoricals": ["weekday"]}, "makes a feature named 'weekday'"),
        ({"label": ""}, "`label` should be a text that is not empty"),
        ({"label": 1}, "`label` should hold column names (texts). Received: 1"),
        ({"categoricals": [""]}, "`categoricals` should be a text that is not empty. Received: ''"),
        ({"categoricals": ["a\nb"]}, "names without control characters. Received: 'a\\nb'"),
        ({"categoricals": ["a\ud800"]}, "names without control characters. Received: 'a\\ud800'"),
        (
            {"categoricals": ["é" * 65]},
            "names of at most 128 bytes of UTF-8. Received: '" + "é" * 65 + "' of 130",
        ),
        ({"categoricals": {"a": 1}}, "`categoricals` should be a list of column names. Received: {'a': 1}"),
        ({"categoricals": [None]}, "`categoricals` should hold column names (texts). Received: None"),
        ({"missing": [1]}, "`missing` should be a list of texts. Received: (1,)"),
        ({"separator": 9}, "`separator` should be one ASCII character"),
        ({"time": ["at"]}, "`time` should hold the keys"),
        ({"time": {"name": "at", "derive": "weekday"}}, "`time.derive` should be a list of column names"),
        ({"categoricals": [["x" * 1000]]}, "..."),
    ],
)
def test_each_mistake_is_named(change, message):
    good = {"name": "shop", "label": "bought", "integers": ["price"], "categoricals": ["brand"]}
    ClickLogSchema.from_dict(good)
    with pytest.raises(InputError) as caught:
        ClickLogSchema.from_dict({**good, **change})
    assert message in str(caught.value)


def test_schema_names_and_files_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(InputError, match=r"Received: 'critoe'\. Did you mean 'criteo'"):
        load_schema("critoe")
    with pytest.raises(InputError, match=r"gone\.yaml cannot be read"):
        load_schema(str(tmp_path / "gone.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(InputError, match=r"broken\.yaml is not YAML"):
        load_schema(str(broken))
    broken.write_text("label: x\n")
    with pytest.raises(InputError, match=r"broken\.yaml: `schema` should have the key 'name'"):
        load_schema(str(broken))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "name: prix\nlabel: y\ncategoricals: [é]\n".encode("latin-1"),
            "should be UTF-8 text. Received: byte 0xe9 in line 3",
        ),
        ("name: prix\n".encode("utf-16"), "should be UTF-8 text. Received: UTF-16 text: convert it"),
        (b"name: a\nlabel: y\nname: b\n", "line 3, column 1: the key 'name' is given twice"),
        (
            b"name: a\ntime: {name: at, name: at}\n",
            "line 2, column 18: the key 'name' is given twice",
        ),
        (b"name: a\n  label: y\n", "is not YAML, line 2, column 8: mapping values are not allowed here"),
        (b"name: \x00", "should be UTF-8 text. Received: binary data"),
        (b"name: 2014-13-45", "`schema` should have the key 'label'"),
        (b"[" * 3000, "is nested too deeply"),
        (b"- name", "`schema` should hold the keys"),
        (b"", "`schema` should hold the keys"),
        (b"{[a]: 1}", "a key should be text"),
        (b"!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_schema_file_that_is_none_is_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "shop.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_schema(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_schema_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "shop.yaml").write_text("\ufeff{name: s, label: y, categoricals: [prix_€]}", encoding="utf-8")
    assert load_schema(str(tmp_path / "shop.yaml")).categoricals == ("prix_€",)


def test_a_schema_is_a_value():
    assert dataclasses.replace(CRITEO) == CRITEO
    assert hash(dataclasses.replace(AVAZU)) == hash(AVAZU)
    with pytest.raises(dataclasses.FrozenInstanceError):
        CRITEO.label = "x"


def test_the_command_gets_the_schemas_without_anything_heavy():
    heavy = ("pyarrow", "tensorflow", "apache_beam")
    code = (
        "import sys; sys.argv[0] = 'mlet-tf'; import mlet_tf.datasets; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
