"""Stored templates over HTTP: list, store, show, delete, and preview a mail."""

from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import NotFound

from mailroom.api.answers import PreviewJson, TemplateJson, TemplateSummaryJson
from mailroom.api.http.pagination import read_page
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
    """List the templates by name, a page at a time; `?after=` is the last name on the page before."""
    limit, after = read_page(
        lambda cursor: cursor if is_name(cursor) else None,
        request.args,
        expected="the name of a template",
    )
    rows = services().templates.page(limit=limit + 1, after=after or "")
    data = [_summary_json(row) for row in rows[:limit]]
    return jsonify({"data": data, "has_more": len(rows) > limit})


@blueprint.put("/v1/templates/<name>")
def put_template(name: str) -> tuple[Response, int]:
    """Create or replace a template; messages that were accepted before stay as they are."""
    saved = save(name, json_body())
    return jsonify(template_json(saved.template)), 201 if saved.is_new else 200


def save(name: str, value: object) -> Saved:
    """Create or replace a template. Raises InvalidMessage, as `read_texts` does."""
    texts = read_texts(name, value)
    return services().templates.save(name, subject=texts.subject, text=texts.text, html=texts.html)


@blueprint.get("/v1/templates/<name>")
def get_template(name: str) -> Response:
    """Return a template with its texts."""
    return jsonify(template_json(_find(name)))


@blueprint.delete("/v1/templates/<name>")
def delete_template(name: str) -> Response:
    """Delete a template. Messages that were accepted before stay as they are."""
    if not services().templates.delete(name):
        raise _unknown(name)
    return Response(status=204)


@blueprint.post("/v1/templates/<name>/preview")
def preview_template(name: str) -> Response:
    """Fill in a template with variables and return the result; nothing is sent."""
    variables = read_fields(PreviewRequest, json_body()).variables
    return jsonify(preview_json(_find(name), variables))


def read_texts(name: str, value: object) -> StoreTemplateRequest:
    """Read the texts of a template and check their syntax.

    Raises:
      InvalidMessage: the name is not allowed, a field is wrong, or a text is not a template.
    """
    if not is_name(name):
        detail = f"expected 1 to 100 of a-z, 0-9, ., _ and -, not . _ or - first, got {name[:80]!r}"
        raise InvalidMessage([FieldError("name", detail)])
    texts = read_fields(StoreTemplateRequest, value)
    check(texts)
    return texts


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
    """Return the parts of a mail; a missing text is made from the HTML, as for a mail that is sent."""
    rendered = merge(template, variables)
    text = rendered.text
    if text is None:
        text = plain_text(rendered.html or "")
    return {"subject": rendered.subject, "text": text, "html": rendered.html}


def _summary_json(row: dict[str, Any]) -> TemplateSummaryJson:
    return {
        "name": row["name"],
        "subject": row["subject"],
        "created_at": timestamp(row["created_at"]),
        "updated_at": timestamp(row["updated_at"]),
    }


def _find(name: str) -> Template:
    template = services().templates.find(name)
    if template is None:
        raise _unknown(name)
    return template


def _unknown(name: str) -> NotFound:
    return NotFound(f"expected the name of a template, got {name[:80]!r}")
