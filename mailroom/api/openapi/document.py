"""The description of this API (OpenAPI 3.1), made of the models that read requests, the routes, and what operations.py says of each."""

import json
import re
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Flask, Response, current_app
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mailroom.api.answers import Schema
from mailroom.api.auth.scopes import needed
from mailroom.api.openapi.operations import (
    EXAMPLES,
    HEADERS,
    JSON,
    OPERATIONS,
    PLACES,
    REFUSALS,
    Operation,
    Parameter,
    Returned,
    is_strict,
)
from mailroom.api.openapi.schemas import answer_schemas, or_null, ref
from mailroom.api.routes.suppressions import AskedSuppressions
from mailroom.api.routes.webhooks import AskedChange, AskedWebhook
from mailroom.store.keys.api_keys import Scope
from mailroom.submission.message import MailAfterJobRequest, MailRequest
from mailroom.submission.reader import BatchRequest, JobRequest, JobWithMailRequest
from mailroom.submission.template import PreviewRequest, StoreTemplateRequest
from mailroom.submission.times import RescheduleRequest

blueprint = Blueprint("openapi", __name__)

_BUILT = "mailasync openapi"
_MODELS: tuple[type[BaseModel], ...] = (
    MailRequest,
    MailAfterJobRequest,
    BatchRequest,
    RescheduleRequest,
    JobRequest,
    JobWithMailRequest,
    StoreTemplateRequest,
    PreviewRequest,
    AskedSuppressions,
    AskedWebhook,
    AskedChange,
)
_SECURITY = {
    "Bearer": {"type": "http", "scheme": "bearer", "description": "The API key."},
    "Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The API key is the password; any user name will do.",
    },
}
_ABOUT = (
    "Takes mails and jobs as JSON, answers at once, and tells at any time where each is. On the machine itself no API key is needed, "
    "as long as there is none."
)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """This API, as OpenAPI 3.1."""
    if _BUILT not in current_app.extensions:
        current_app.extensions[_BUILT] = json.dumps(document(current_app), ensure_ascii=False).encode()
    return Response(current_app.extensions[_BUILT], content_type=JSON)


def document(app: Flask) -> dict[str, Any]:
    """The description of the routes that this application has."""
    paths: dict[str, dict[str, Any]] = {}
    for route, view in routes(app).items():
        method, _, rule = route.partition(" ")
        if operation := OPERATIONS.get(route):
            paths.setdefault(_path(rule), {})[method.lower()] = _operation(operation, method, rule, view, app)
    return {
        "openapi": "3.1.0",
        "info": {"title": "mailasync", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [
            {"name": group} for group in dict.fromkeys(operation.group for operation in OPERATIONS.values())
        ],
        "paths": paths,
        "components": {"schemas": {**_asked(), **answer_schemas()}, "securitySchemes": _SECURITY},
    }


def routes(app: Flask) -> dict[str, str]:
    """The endpoint of each route of this application, by method and rule; in the order of OPERATIONS, what is in none of it last."""
    found = {
        f"{method} {rule.rule}": rule.endpoint
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    others = sorted(found.keys() - OPERATIONS.keys())
    return {route: found[route] for route in (*(known for known in OPERATIONS if known in found), *others)}


def _asked() -> dict[str, Schema]:
    """The models of requests; where a field is another reader's, that one's model stands there."""
    found: dict[str, Schema] = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )[1]["$defs"]
    del found["Address"]  # What it is read from is described at each field.
    found["MailAfterJobRequest"]["properties"]["job"] |= or_null(ref("JobRequest"))
    found["JobWithMailRequest"]["properties"]["notify"] |= or_null(ref("MailRequest"))
    own = {
        "variables": {
            "type": "object",
            "additionalProperties": True,
            "description": "Added to those of the template.",
        }
    }
    found["BatchMailRequest"] = {
        "type": "object",
        "description": "A mail of a batch: what it does not share.",
        "properties": found["MailRequest"]["properties"] | own,
        "additionalProperties": False,
    }
    found["BatchRequest"]["properties"]["messages"] |= {
        "items": ref("BatchMailRequest"),
        "minItems": 1,
        "maxItems": 1000,
    }
    return found


def _operation(operation: Operation, method: str, rule: str, endpoint: str, app: Flask) -> dict[str, Any]:
    summary = (app.view_functions[endpoint].__doc__ or "").strip().split("\n")[0]
    of, _, name = endpoint.rpartition(".")
    answers = dict(operation.answers)
    refusals = {*operation.refusals} | (set() if operation.is_open else {401, 403, 429, 503})
    for status in refusals | ({422} if is_strict(f"{method} {rule}") else set()):
        answers.setdefault(status, REFUSALS[status])
    described: dict[str, Any] = {
        "summary": summary,
        "operationId": f"inbox_{name}" if of == "inbox" else name,
        "tags": [operation.group],
        "description": _who(operation, method, rule),
        "parameters": [*map(_parameter, _places(rule)), *map(_parameter, operation.parameters)],
        "responses": {str(status): _returned(answers[status], status) for status in sorted(answers)},
        "security": [] if operation.is_open else [{name: []} for name in _SECURITY],
    }
    return described | ({"requestBody": _body(operation)} if operation.body else {})


def _who(operation: Operation, method: str, rule: str) -> str:
    if operation.is_open:
        return "Needs no key."
    wanted = [f"`{scope}`" for scope in dict.fromkeys([*needed(method, rule), Scope.ADMIN])]
    return f"Needs a key with the scope {' or '.join(wanted)}."


def _body(operation: Operation) -> dict[str, Any]:
    schema = ref(operation.body)
    if operation.body == "BatchRequest":
        schema = {
            "anyOf": [
                schema,
                {"type": "array", "items": ref("BatchMailRequest"), "minItems": 1, "maxItems": 1000},
            ]
        }
    content: dict[str, Any] = {JSON: {"schema": schema, "example": EXAMPLES[operation.body]}}
    if operation.form:
        file = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "properties": {operation.form: schema},
                "required": [operation.form],
                "additionalProperties": {"type": "array", "items": file},
            },
            "encoding": {operation.form: {"contentType": JSON}},
        }
    return {"required": True, "content": content}


def _places(rule: str) -> list[Parameter]:
    return [
        Parameter(name=name, told="", schema=PLACES[name], place="path")
        for name in re.findall(r"<(?:\w+:)?(\w+)>", rule)
    ]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return (
        {"name": parameter.name, "in": parameter.place, "schema": parameter.schema}
        | ({"description": parameter.told} if parameter.told else {})
        | ({"required": True} if parameter.place == "path" else {})
    )


def _returned(returned: Returned, status: int) -> dict[str, Any]:
    headers = {header.rstrip("!"): header.endswith("!") for header in ("X-Request-Id!", *returned.headers)}
    described: dict[str, Any] = {
        "description": returned.told or HTTPStatus(status).phrase,
        "headers": {
            name: {"description": HEADERS[name][0], "schema": HEADERS[name][1], "required": always}
            for name, always in headers.items()
        },
    }
    content = {media: {"schema": _schema(schema)} for media, schema in returned.content.items()}
    return described | ({"content": content} if content else {})


def _schema(schema: Schema | str) -> Schema:
    if isinstance(schema, str):
        return ref(schema)
    return {"anyOf": [ref(name) for name in schema["anyOf"]]} if "anyOf" in schema else schema


def _path(rule: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)
