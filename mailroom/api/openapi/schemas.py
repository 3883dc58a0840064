"""Makes JSON Schema from the types in answers.py; a test checks real answers against it."""

import inspect
import json
import re
from functools import cache
from types import GenericAlias
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import TypedDictSchema
from typing_extensions import is_typeddict

from mailroom.api import answers
from mailroom.api.json_schemas import Schema, one_of

_FAILURE = one_of(("defer", "refuse", "drop"))
#: Schemas that do not come from a type in answers.py.
_OTHERS: dict[str, Schema] = {
    "FailureRequest": {
        "description": "null: nothing fails.",
        "type": "object",
        "properties": {
            "failure": {"anyOf": [_FAILURE, {"type": "null"}]},
            "count": {"type": "integer", "minimum": 1, "maximum": 1000},
        },
        "required": [],
        "additionalProperties": False,
    },
    "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


@cache
def answer_schemas() -> dict[str, Schema]:
    """Return the schema of each type in answers.py, by the type's name without `Json`."""
    types = []
    for name, kind in inspect.getmembers(answers, is_typeddict):
        if not name.startswith("_"):
            types.append(kind)
    every: Any = GenericAlias(tuple, tuple(types))
    adapter: TypeAdapter[Any] = TypeAdapter(every)
    generated = adapter.json_schema(
        ref_template="#/components/schemas/{model}", schema_generator=_Exact
    )
    schemas = {name.removesuffix("Json"): schema for name, schema in generated["$defs"].items()}
    text = re.sub(r'(#/components/schemas/\w+)Json"', r'\1"', json.dumps(schemas))
    return {**json.loads(text), **_OTHERS}


class _Exact(GenerateJsonSchema):
    """Allows no further fields in an answer, and leaves out titles, which would only repeat names."""

    def typed_dict_schema(self, schema: TypedDictSchema) -> JsonSchemaValue:
        schema_json = super().typed_dict_schema(schema)
        del schema_json["title"]
        return schema_json | {"additionalProperties": False}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
