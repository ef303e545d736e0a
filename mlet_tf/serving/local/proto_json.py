"""Messages as the REST interface of TF Serving prints them: all fields, one space of indentation."""

import json
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int64Value

_Printed: TypeAlias = dict[str, "_Printed"] | list["_Printed"] | str | int | float | bool
_AS_TEXT = (
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
)


def to_json(message: Message, *, proto_names: bool = False) -> str:
    """The text of a message, fields without a value included, with a newline at the end.

    Args:
        message: the message.
        proto_names: whether to name fields as the .proto file does, and not as JSON would.
    """
    text = json.dumps(_value_of(message, proto_names), indent=1, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e") + "\n"


def _value_of(message: Message, proto_names: bool) -> _Printed:
    if isinstance(message, Int64Value):
        return str(message.value)
    fields = message.DESCRIPTOR.fields
    # Members of a oneof come last, since the others were laid out before the message was read.
    ordered = [f for f in fields if not f.containing_oneof] + [f for f in fields if f.containing_oneof]
    result = {}
    for field in ordered:
        name = field.name if proto_names else field.json_name
        is_single_message = field.label != FieldDescriptor.LABEL_REPEATED and field.message_type is not None
        if (is_single_message or field.containing_oneof) and not message.HasField(field.name):
            continue
        result[name] = _field_value(field, getattr(message, field.name), proto_names)
    return result


def _field_value(field: FieldDescriptor, value: Any, proto_names: bool) -> _Printed:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        item = field.message_type.fields_by_name["value"]
        return {str(key): _single(item, value[key], proto_names) for key in sorted(value)}
    if field.label == FieldDescriptor.LABEL_REPEATED:
        return [_single(field, item, proto_names) for item in value]
    return _single(field, value, proto_names)


def _single(field: FieldDescriptor, value: Any, proto_names: bool) -> _Printed:
    if field.message_type is not None:
        return _value_of(value, proto_names)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return str(value) if field.cpp_type in _AS_TEXT else value
