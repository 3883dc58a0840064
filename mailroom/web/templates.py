"""Stored templates as a person writes them, with what a mail would say beside them."""

from flask import Response, request

from mailroom.api.answers import PreviewJson
from mailroom.api.routes import templates
from mailroom.api.services import services
from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON
from mailroom.model.times import timestamp
from mailroom.store.templates import is_name
from mailroom.submission.strict_json import parse_json
from mailroom.web.layout import done, page, pages, see

blueprint = pages("templates")

PAGE_LENGTH = 50
TEXTS = ("subject", "text", "html")
#: The page inside a page that shows a preview: nothing runs, nothing is fetched, and the HTML's own styles are seen.
_PREVIEW_POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src data:; frame-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
_EXAMPLE = '{"name": "Bob", "order": 42}'


@blueprint.get("/templates")
def list_templates() -> Response:
    """The templates by name; `?name=` opens one, or begins it."""
    name = request.args.get("name", "").strip()
    if is_name(name):
        return see(f"/templates/{name}")
    after = request.args.get("after", "")
    rows = services().templates.page(limit=PAGE_LENGTH + 1, after=after if is_name(after) else "")
    return page(
        "templates.html",
        status=422 if name else 200,
        name=name,
        next=rows[PAGE_LENGTH - 1]["name"] if len(rows) > PAGE_LENGTH else None,
        rows=[row | {"updated_at": timestamp(row["updated_at"])} for row in rows[:PAGE_LENGTH]],
    )


@blueprint.get("/templates/<name>")
def template(name: str) -> Response:
    """Show a template to change, or a new one."""
    if not is_name(name):
        return see("/templates")
    found = services().templates.find(name)
    texts = {part: getattr(found, part) or "" for part in TEXTS} if found else {}
    return _page(name, texts, is_new=found is None)


@blueprint.post("/templates/<name>")
def save(name: str) -> Response:
    """Save it, as `PUT /v1/templates/<name>` does."""
    texts = {part: request.form.get(part, "").replace("\r\n", "\n") for part in TEXTS}
    try:
        templates.save(name, {part: text for part, text in texts.items() if text})
    except InvalidMessage as e:
        return _page(name, texts, wrong=e.errors, is_new=services().templates.find(name) is None)
    return done(f"/templates/{name}", "saved")


@blueprint.post("/templates/<name>/preview")
def preview(name: str) -> Response:
    """Show what a mail of these texts would say, saved or not."""
    texts = {part: text for part in TEXTS if (text := request.form.get(part, "").replace("\r\n", "\n"))}
    said: PreviewJson | None = None
    wrong: list[FieldError] = []
    try:
        variables = parse_json(
            (request.form.get("variables", "").strip() or "{}").encode("utf-8", "surrogatepass")
        )
        if not isinstance(variables, dict):
            raise MalformedJSON("expected a JSON object of variables")
        said = templates.preview_json(templates.read_texts(name, texts), variables)
    except MalformedJSON as e:
        wrong = [FieldError("variables", str(e))]
    except InvalidMessage as e:
        wrong = e.errors
    answer = page("template_preview.html", said=said, wrong=wrong)
    answer.headers["Content-Security-Policy"] = _PREVIEW_POLICY
    return answer


@blueprint.post("/templates/<name>/delete")
def delete(name: str) -> Response:
    """Delete it; messages that were accepted before stay as they are."""
    templates.delete_template(name)
    return done("/templates", "deleted")


def _page(
    name: str, texts: dict[str, str], *, is_new: bool, wrong: list[FieldError] | None = None
) -> Response:
    return page(
        "template.html",
        status=422 if wrong else 200,
        name=name,
        texts=texts,
        is_new=is_new,
        wrong=wrong or [],
        variables=request.form.get("variables", _EXAMPLE),
    )
