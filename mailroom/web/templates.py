"""The pages of stored templates: list and edit them, with a preview of the mail."""

from flask import Response, request

from mailroom.api.answers import PreviewJson
from mailroom.api.routes import templates
from mailroom.api.services import services
from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON
from mailroom.model.times import timestamp
from mailroom.store.templates import is_name
from mailroom.submission.strict_json import parse_json
from mailroom.web.layout import done, page, pages, see, status_of

blueprint = pages("templates")

PAGE_LENGTH = 50
TEXTS = ("subject", "text", "html")
#: For the preview in a frame: no scripts, nothing is fetched, but the styles of the HTML apply.
_PREVIEW_POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src data:; frame-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_EXAMPLE = '{"name": "Bob", "order": 42}'


@blueprint.get("/templates")
def list_templates() -> Response:
    """List the templates by name; `?name=` opens one, or begins a new one."""
    name = request.args.get("name", "").strip()
    if is_name(name):
        return see(f"/templates/{name}")
    after = request.args.get("after", "")
    rows = services().templates.page(limit=PAGE_LENGTH + 1, after=after if is_name(after) else "")
    listed = [row | {"updated_at": timestamp(row["updated_at"])} for row in rows[:PAGE_LENGTH]]
    return page(
        "templates.html",
        status=status_of(name),
        name=name,
        next=rows[PAGE_LENGTH - 1]["name"] if len(rows) > PAGE_LENGTH else None,
        rows=listed,
    )


@blueprint.get("/templates/<name>")
def show_template(name: str) -> Response:
    """Show the form to edit a template, or to write a new one."""
    if not is_name(name):
        return see("/templates")
    template = services().templates.find(name)
    texts = {}
    if template:
        texts = {part: getattr(template, part) or "" for part in TEXTS}
    return _page(name, texts, is_new=template is None)


@blueprint.post("/templates/<name>")
def save(name: str) -> Response:
    """Save a template, as `PUT /v1/templates/<name>` does."""
    texts = {part: request.form.get(part, "").replace("\r\n", "\n") for part in TEXTS}
    try:
        templates.save(name, {part: text for part, text in texts.items() if text})
    except InvalidMessage as e:
        return _page(name, texts, errors=e.errors, is_new=services().templates.find(name) is None)
    return done(f"/templates/{name}", "saved")


@blueprint.post("/templates/<name>/preview")
def preview(name: str) -> Response:
    """Render the texts in the form, saved or not."""
    texts = {part: request.form.get(part, "").replace("\r\n", "\n") for part in TEXTS}
    texts = {part: text for part, text in texts.items() if text}
    rendered: PreviewJson | None = None
    errors: list[FieldError] = []
    try:
        text = request.form.get("variables", "").strip() or "{}"
        variables = parse_json(text.encode("utf-8", "surrogatepass"))
        if not isinstance(variables, dict):
            raise MalformedJSON("expected a JSON object of variables")
        rendered = templates.preview_json(templates.read_texts(name, texts), variables)
    except MalformedJSON as e:
        errors = [FieldError("variables", str(e))]
    except InvalidMessage as e:
        errors = e.errors
    response = page("template_preview.html", rendered=rendered, errors=errors)
    response.headers["Content-Security-Policy"] = _PREVIEW_POLICY
    return response


@blueprint.post("/templates/<name>/delete")
def delete(name: str) -> Response:
    """Delete a template; messages accepted with it stay as they are."""
    templates.delete_template(name)
    return done("/templates", "deleted")


def _page(
    name: str, texts: dict[str, str], *, is_new: bool, errors: list[FieldError] | None = None
) -> Response:
    return page(
        "template.html",
        status=status_of(errors),
        name=name,
        texts=texts,
        is_new=is_new,
        errors=errors or [],
        variables=request.form.get("variables", _EXAMPLE),
    )
