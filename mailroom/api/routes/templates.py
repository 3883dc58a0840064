"""Stored templates over HTTP: list, save, show, delete, and look at what a mail would say."""

from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import NotFound

from mailroom.api.answers import PreviewJson, TemplateJson, TemplateSummaryJson
from mailroom.api.http.pagination import asked_page
from mailroom.api.http.request import json_body
from mailroom.api.services import services
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.times import timestamp
from mailroom.smtp.plaintext import plain_text
from mailroom.store.templates import Saved, Template, is_name
from mailroom.submission.fields import read_fields
from mailroom.submission.template import PreviewRequest, StoreTemplateRequest
from mailroom.templating.stored import Sources, check, merge

blueprint = Blueprint("templates", __name__)


@blueprint.get("/v1/templates")
def list_templates() -> Response:
    """The templates by name, a page at a time; `?after=` the last name of the page before."""
    limit, after = asked_page(
        lambda cursor: cursor if is_name(cursor) else None, request.args, expected="the name of a template"
    )
    rows = services().templates.page(limit=limit + 1, after=after or "")
    return jsonify({"data": [_summary_json(row) for row in rows[:limit]], "has_more": len(rows) > limit})


@blueprint.put("/v1/templates/<name>")
def put_template(name: str) -> tuple[Response, int]:
    """Create or replace a template; its syntax is checked. Messages that were accepted before stay as they are."""
    saved = save(name, json_body())
    return jsonify(template_json(saved.template)), 201 if saved.is_new else 200


def save(name: str, value: object) -> Saved:
    """Raises InvalidMessage, as `read_texts` does."""
    asked = read_texts(name, value)
    return services().templates.save(name, subject=asked.subject, text=asked.text, html=asked.html)


@blueprint.get("/v1/templates/<name>")
def get_template(name: str) -> Response:
    """A template with its texts."""
    return jsonify(template_json(_found(name)))


@blueprint.delete("/v1/templates/<name>")
def delete_template(name: str) -> Response:
    """Delete a template. Messages that were accepted before stay as they are."""
    if not services().templates.delete(name):
        raise _unknown(name)
    return Response(status=204)


@blueprint.post("/v1/templates/<name>/preview")
def preview_template(name: str) -> Response:
    """Show what a mail of this template would say with these variables; nothing is sent."""
    asked = read_fields(PreviewRequest, json_body())
    return jsonify(preview_json(_found(name), asked.variables))


def read_texts(name: str, value: object) -> StoreTemplateRequest:
    """Raises InvalidMessage: the name is none, fields are wrong, or a text is no template."""
    if not is_name(name):
        raise InvalidMessage(
            [
                FieldError(
                    "name",
                    f"expected 1 to 100 of a-z, 0-9, ., _ and -, not . _ or - first, got {name[:80]!r}",
                )
            ]
        )
    asked = read_fields(StoreTemplateRequest, value)
    check(asked)
    return asked


def template_json(template: Template) -> TemplateJson:
    """Return a template with its texts."""
    return {
        "name": template.name,
        "subject": template.subject,
        "text": template.text,
        "html": template.html,
        "created_at": timestamp(template.created_at),
        "updated_at": timestamp(template.updated_at),
    }


def preview_json(template: Sources, variables: dict[str, Any]) -> PreviewJson:
    """The parts of a mail, the text made from the HTML where the template has none, as composing makes it."""
    letter = merge(template, variables)
    text = plain_text(letter.html or "") if letter.text is None else letter.text
    return {"subject": letter.subject, "text": text, "html": letter.html}


def _summary_json(row: dict[str, Any]) -> TemplateSummaryJson:
    return {
        "name": row["name"],
        "subject": row["subject"],
        "created_at": timestamp(row["created_at"]),
        "updated_at": timestamp(row["updated_at"]),
    }


def _found(name: str) -> Template:
    template = services().templates.find(name)
    if template is None:
        raise _unknown(name)
    return template


def _unknown(name: str) -> NotFound:
    return NotFound(f"expected the name of a template, got {name[:80]!r}")
