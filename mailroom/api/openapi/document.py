"""Describes this API in OpenAPI 3.1, from the routes, the models of requests, and operations.py."""

import json
import re
from http import HTTPStatus
from typing import NotRequired, TypedDict

from flask import Blueprint, Flask, Response, current_app
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mailroom.api.auth.scopes import needed
from mailroom.api.json_schemas import TEXT, Schema
from mailroom.api.openapi.operation import (
    HEADERS,
    JSON,
    REFUSALS,
    Operation,
    Parameter,
    ResponseDescription,
)
from mailroom.api.openapi.operations import (
    EXAMPLES,
    OPERATIONS,
    PATH_SCHEMAS,
    RAW_EXAMPLE,
    is_strict,
)
from mailroom.api.openapi.schemas import answer_schemas, or_null, ref
from mailroom.api.routes.suppressions import SuppressionsRequest
from mailroom.api.routes.webhooks import WebhookChange, WebhookRequest
from mailroom.store.keys.api_keys import Scope
from mailroom.submission.message import MailAfterJobRequest, MailRequest
from mailroom.submission.reader import BatchRequest, JobRequest, JobWithMailRequest
from mailroom.submission.template import PreviewRequest, StoreTemplateRequest
from mailroom.submission.times import RescheduleRequest

blueprint = Blueprint("openapi", __name__)

#: Under this name the application keeps the finished document.
_EXTENSION = "mailasync openapi"
_MODELS: tuple[type[BaseModel], ...] = (
    MailRequest,
    MailAfterJobRequest,
    BatchRequest,
    RescheduleRequest,
    JobRequest,
    JobWithMailRequest,
    StoreTemplateRequest,
    PreviewRequest,
    SuppressionsRequest,
    WebhookRequest,
    WebhookChange,
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
    "Takes mails and jobs as JSON, answers at once, and tells at any time where each is. "
    "On the machine itself no API key is needed, as long as there is none."
)
#: Statuses of any operation that needs an API key.
_KEY_REFUSALS = {401, 403, 429, 503}
_PATH_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")


class _OperationJson(TypedDict):
    """The Operation Object of OpenAPI 3.1."""

    summary: str
    operationId: str
    tags: list[str]
    description: str
    parameters: list[Schema]
    responses: dict[str, Schema]
    security: list[dict[str, list[str]]]
    requestBody: NotRequired[Schema]


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """Return this API's description, in OpenAPI 3.1."""
    extensions = current_app.extensions
    if _EXTENSION not in extensions:
        extensions[_EXTENSION] = json.dumps(document(current_app), ensure_ascii=False).encode()
    return Response(extensions[_EXTENSION], content_type=JSON)


def document(app: Flask) -> Schema:
    """Describe the routes that this application has."""
    paths: dict[str, dict[str, _OperationJson]] = {}
    for route, endpoint in routes(app).items():
        if operation := OPERATIONS.get(route):
            method, _, rule = route.partition(" ")
            path = _PATH_PARAMETER.sub(r"{\1}", rule)
            paths.setdefault(path, {})[method.lower()] = _operation_json(
                operation, route, endpoint, app
            )
    groups = dict.fromkeys(operation.group for operation in OPERATIONS.values())
    schemas = {**_request_schemas(), **answer_schemas()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mailasync", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": group} for group in groups],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }


def routes(app: Flask) -> dict[str, str]:
    """Return the endpoint of each route, by method and rule: first those in OPERATIONS, in its order."""
    endpoints = {
        f"{method} {rule.rule}": rule.endpoint
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = [route for route in OPERATIONS if route in endpoints]
    others = sorted(endpoints.keys() - OPERATIONS.keys())
    return {route: endpoints[route] for route in (*described, *others)}


def _request_schemas() -> dict[str, Schema]:
    """Return the schemas of requests; a field that another model reads refers to that model's schema."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Schema] = definitions["$defs"]
    del schemas["Address"]  # Each field describes the text or object that becomes an address.
    schemas["MailAfterJobRequest"]["properties"]["job"] |= or_null(ref("JobRequest"))
    schemas["JobWithMailRequest"]["properties"]["notify"] |= or_null(ref("MailRequest"))
    variables = {
        "type": "object",
        "additionalProperties": True,
        "description": "Added to those of the template.",
    }
    schemas["BatchMailRequest"] = {
        "type": "object",
        "description": "A mail of a batch: the fields that it does not share with the others.",
        "properties": schemas["MailRequest"]["properties"] | {"variables": variables},
        "additionalProperties": False,
    }
    mails = {"items": ref("BatchMailRequest"), "minItems": 1, "maxItems": 1000}
    schemas["BatchRequest"]["properties"]["messages"] |= mails
    return schemas


def _operation_json(operation: Operation, route: str, endpoint: str, app: Flask) -> _OperationJson:
    method, _, rule = route.partition(" ")
    blueprint_name, _, name = endpoint.rpartition(".")
    docstring = app.view_functions[endpoint].__doc__ or ""
    security: list[dict[str, list[str]]] = []
    if not operation.is_open:
        security = [{scheme: []} for scheme in _SECURITY]
    described: _OperationJson = {
        "summary": docstring.strip().split("\n")[0],
        "operationId": f"inbox_{name}" if blueprint_name == "inbox" else name,
        "tags": [operation.group],
        "description": _needed_scopes(operation, method, rule),
        "parameters": _parameters(operation, rule),
        "responses": _responses(operation, route),
        "security": security,
    }
    if operation.body:
        described["requestBody"] = _request_body(operation)
    elif operation.raw_body:
        content = {operation.raw_body: {"schema": TEXT, "example": RAW_EXAMPLE}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _responses(operation: Operation, route: str) -> dict[str, Schema]:
    """Describe every response of an operation, in the order of their statuses."""
    answers = dict(operation.answers)
    refusals = set(operation.refusals)
    if not operation.is_open:
        refusals |= _KEY_REFUSALS
    if is_strict(route):
        refusals.add(422)
    for status in refusals:
        answers.setdefault(status, REFUSALS[status])
    return {str(status): _response_json(answers[status], status) for status in sorted(answers)}


def _needed_scopes(operation: Operation, method: str, rule: str) -> str:
    if operation.is_open:
        return "Needs no key."
    scopes = dict.fromkeys([*needed(method, rule), Scope.ADMIN])
    choice = " or ".join(f"`{scope}`" for scope in scopes)
    return f"Needs a key with the scope {choice}."


def _request_body(operation: Operation) -> Schema:
    schema = ref(operation.body)
    if operation.body == "BatchRequest":
        mails = {"type": "array", "items": ref("BatchMailRequest"), "minItems": 1, "maxItems": 1000}
        schema = {"anyOf": [schema, mails]}
    content: dict[str, Schema] = {JSON: {"schema": schema, "example": EXAMPLES[operation.body]}}
    if operation.form:
        file = {
            "type": "string",
            "format": "binary",
            "contentMediaType": "application/octet-stream",
        }
        form = {
            "type": "object",
            "properties": {operation.form: schema},
            "required": [operation.form],
            "additionalProperties": {"type": "array", "items": file},
        }
        encoding = {operation.form: {"contentType": JSON}}
        content["multipart/form-data"] = {"schema": form, "encoding": encoding}
    return {"required": True, "content": content}


def _parameters(operation: Operation, rule: str) -> list[Schema]:
    """Describe the parameters in the path, then the others."""
    in_path = [
        Parameter(name=name, description="", schema=PATH_SCHEMAS[name], location="path")
        for name in _PATH_PARAMETER.findall(rule)
    ]
    return [_parameter_json(parameter) for parameter in (*in_path, *operation.parameters)]


def _parameter_json(parameter: Parameter) -> Schema:
    described: Schema = {
        "name": parameter.name,
        "in": parameter.location,
        "schema": parameter.schema,
    }
    if parameter.is_repeated:
        described["schema"] = {"type": "array", "items": parameter.schema}
    if parameter.description:
        described["description"] = parameter.description
    if parameter.location == "path":
        described["required"] = True
    return described


def _response_json(response: ResponseDescription, status: int) -> Schema:
    described: Schema = {
        "description": response.description or HTTPStatus(status).phrase,
        "headers": {
            name.rstrip("!"): _header_json(name) for name in ("X-Request-Id!", *response.headers)
        },
    }
    if response.content:
        content = {
            media: {"schema": _resolved(schema)} for media, schema in response.content.items()
        }
        described["content"] = content
    return described


def _header_json(name: str) -> Schema:
    """Describe a header field; a "!" at the end of its name says that it is always present."""
    description, schema = HEADERS[name.rstrip("!")]
    return {"description": description, "schema": schema, "required": name.endswith("!")}


def _resolved(schema: Schema | str) -> Schema:
    """Return a schema in which names of schemas have become references."""
    if isinstance(schema, str):
        return ref(schema)
    if "anyOf" in schema:
        return {"anyOf": [ref(name) for name in schema["anyOf"]]}
    return schema
