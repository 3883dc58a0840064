"""Makes JSON Schema of the types of answers, which are exactly this; a test holds real answers against it."""

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
from mailroom.api.answers import Schema, one_of

_FAILURE = one_of(("defer", "refuse", "drop"))
#: Schemas that are no type of an answer of ours.
_OTHERS: dict[str, Schema] = {
    "AskedFailure": {
        "description": "null: all is well.",
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
    """Return the schemas of all answers by name, which is that of the type without `Json`."""
    types = [
        kind for _, kind in inspect.getmembers(answers, is_typeddict) if not kind.__name__.startswith("_")
    ]
    every: Any = GenericAlias(tuple, tuple(types))
    adapter: TypeAdapter[Any] = TypeAdapter(every)
    made = adapter.json_schema(ref_template="#/components/schemas/{model}", schema_generator=_Exact)
    schemas = {kind.removesuffix("Json"): schema for kind, schema in made["$defs"].items()}
    text = re.sub(r'(#/components/schemas/\w+)Json"', r'\1"', json.dumps(schemas))
    return {**json.loads(text), **_OTHERS}


class _Exact(GenerateJsonSchema):
    """Describes an answer with no field but its own, and without titles that only repeat names."""

    def typed_dict_schema(self, schema: TypedDictSchema) -> JsonSchemaValue:
        made = super().typed_dict_schema(schema)
        del made["title"]
        return made | {"additionalProperties": False}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
