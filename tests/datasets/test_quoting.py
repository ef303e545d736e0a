"""Quoted text files: RFC 4180 is read whole or refused by line, and a quote elsewhere is a character."""

import csv
import dataclasses
import gzip
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import CRITEO, ClickLogSchema, load_schema
from mlet_tf.datasets.reading import lines_before, plan_chunks, read_chunk, read_log
from mlet_tf.errors import InputError

SHOP = ClickLogSchema.from_dict(
    {"name": "shop", "label": "y", "integers": ["i"], "categoricals": ["a", "b"], "separator": ","}
)


def read_all(path, schema=SHOP, chunk_bytes=1 << 20, block_bytes=1 << 20):
    """Rows as tuples, and (line, reason) of the rejects."""
    chunks = plan_chunks([str(path)], schema, chunk_bytes)
    rows, rejects, lines = [], [], []
    for chunk in chunks:
        before = lines_before(chunks, lines, schema)[-1]
        lines.append(0)
        for block in read_chunk(chunk, schema, None, block_bytes):
            rows += [tuple(row.values()) for row in block.table.to_pylist()]
            rejects += [(reject.line + before, reject.reason) for reject in block.rejects]
            assert len(block.rejected) == len(block.rejects)
            lines[-1] += block.lines
    return rows, rejects


def write(tmp_path, data, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


TEXTS = st.text(st.sampled_from('ab ,"é;\t.0'), max_size=5).filter(lambda text: text not in ("", "5.0"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.integers(-9, 999), TEXTS, TEXTS), min_size=1, max_size=20),
    quote=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    header=st.booleans(),
    sizes=st.tuples(st.integers(5, 300), st.integers(1, 200)),
)
def test_what_pythons_csv_writer_writes_is_read_back(tmp_path, rows, quote, line_end, bom, header, sizes):
    schema = dataclasses.replace(SHOP, header=header, quoting="rfc4180")
    text = io.StringIO()
    writer = csv.writer(text, quoting=quote, lineterminator=line_end)
    if header:
        writer.writerow(schema.columns)
    writer.writerows(rows)
    path = write(tmp_path, b"\xef\xbb\xbf" * bom + text.getvalue().encode())
    expected = [(y, i, _category(a), _category(b)) for y, i, a, b in rows]
    assert read_all(path, schema, *sizes) == (expected, [])


def _category(text):
    whole, dot, zeros = text.partition(".")
    digits = whole.removeprefix("-").isdigit()
    return (whole if digits and dot and zeros and not zeros.strip("0") else text).encode()


def test_quotes_are_taken_off_where_the_first_lines_show_them(tmp_path):
    data = b'1,3,"paris","a,b"\n0,"4",paris,"say ""hi"""\n1,5,5" disk,x\n'
    assert read_all(write(tmp_path, data)) == (
        [(1, 3, b"paris", b"a,b"), (0, 4, b"paris", b'say "hi"'), (1, 5, b'5" disk', b"x")],
        [],
    )
    zipped = write(tmp_path, gzip.compress(data), "log.csv.gz")
    assert read_all(zipped)[0][0] == (1, 3, b"paris", b"a,b")


def test_a_quoted_empty_field_is_missing_and_a_quoted_mark_too(tmp_path):
    schema = dataclasses.replace(SHOP, missing=("", "NA"))
    assert read_all(write(tmp_path, b'1,"","NA","x"\n'), schema) == ([(1, None, None, b"x")], [])


def test_a_line_break_in_quotes_is_refused_by_line_wherever_the_file_is_cut(tmp_path):
    data = b'1,3,"paris","x"\n' * 5 + b'1,3,"par\nis","x"\n' + b"0,4,rome,y\n" * 5
    path = write(tmp_path, data)
    for sizes in ((1 << 20, 1 << 20), (20, 10), (7, 1 << 20)):
        rows, rejects = read_all(path, SHOP, *sizes)
        assert len(rows) == 10
        assert [line for line, _ in rejects] == [6, 7]
        assert (
            "a quoted field does not end on its line (line breaks inside quotes are not read" in rejects[0][1]
        )
    with pytest.raises(InputError, match="line breaks inside quotes are not read"):
        list(read_log(str(path), SHOP))


def test_text_after_a_closing_quote_is_refused(tmp_path):
    _, rejects = read_all(write(tmp_path, b'1,3,"paris","x"\n1,3,"paris"!,x\n'))
    assert rejects == [(2, "text follows the closing quote of a field")]


def test_a_file_whose_first_lines_are_not_quoted_gives_no_category_with_quotes(tmp_path):
    lines = [b"1,3,paris,x"] * 9000 + [b'1,3,"paris",x', b'1,3,5" disk,a "b"', b'1,3,"a,b",x']
    rows, rejects = read_all(write(tmp_path, b"\n".join(lines)))
    assert len(rows) == 9001 and rows[-1][2:] == (b'5" disk', b'a "b"')
    assert [line for line, _ in rejects] == [9001, 9003]
    assert "say in the schema whether `quoting` is rfc4180 or none" in rejects[0][1]
    rows, rejects = read_all(write(tmp_path, b"\n".join(lines)), dataclasses.replace(SHOP, quoting="rfc4180"))
    assert rows[-3:] == [(1, 3, b"paris", b"x"), (1, 3, b'5" disk', b'a "b"'), (1, 3, b"a,b", b"x")]
    assert not rejects


def test_without_quoting_a_quote_is_part_of_the_category(tmp_path):
    none = dataclasses.replace(SHOP, quoting="none")
    assert read_all(write(tmp_path, b'1,3,"paris","x"\n'), none)[0] == [(1, 3, b'"paris"', b'"x"')]
    line = "\t".join(["1", *["2"] * 13, *['"c"'] * 25, '"']).encode()
    rows, rejects = read_all(write(tmp_path, line + b"\n"), CRITEO)
    assert rows[0][14:] == (b'"c"',) * 25 + (b'"',)
    assert not rejects
    # Nor in a file with TABs whose schema says nothing.
    tabs = dataclasses.replace(SHOP, separator="\t")
    assert read_all(write(tmp_path, b'1\t3\t"paris"\t"x"\n'), tabs)[0] == [(1, 3, b'"paris"', b'"x"')]


def test_names_in_a_header_may_be_quoted(tmp_path):
    schema = ClickLogSchema.from_dict(
        {"name": "s", "label": "y", "categoricals": ["a,b", 'say "hi"'], "separator": ",", "header": True}
    )
    path = write(tmp_path, b'\xef\xbb\xbf"say ""hi""","y","a,b"\r\n"x",1,"z"\r\n')
    assert read_all(path, schema) == ([(1, b"z", b"x")], [])
    with pytest.raises(InputError, match="the header should have quotes around whole names"):
        plan_chunks([str(write(tmp_path, b'"y"1,a\n1,"x"\n'))], schema)
    message = "`columns` should hold names without the separator"
    with pytest.raises(InputError, match=message):
        dataclasses.replace(schema, quoting="none")


def test_the_count_of_columns_is_that_of_the_fields_not_of_the_commas(tmp_path):
    _, rejects = read_all(write(tmp_path, b'1,3,"a,b","c,d"\n1,3,"a,b"\n1,3,"a,b","c","d,e"\n'))
    assert rejects == [
        (2, "expected 4 columns. Received: 3"),
        (3, "expected 4 columns. Received: 5"),
    ]


def test_quoting_is_a_key_of_the_schema(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text("{name: shop, label: y, categoricals: [a], quoting: rfc4180}")
    assert load_schema(str(path)).quoting == "rfc4180"
    path.write_text("{name: shop, label: y, categoricals: [a], quoting: rfc}")
    with pytest.raises(InputError, match=r"`quoting` should be .* Received: 'rfc'\. Did you mean 'rfc4180'"):
        load_schema(str(path))
    with pytest.raises(InputError, match="`separator` should not be the quote"):
        dataclasses.replace(SHOP, separator='"')
