"""Webhooks as a person looks at them: who is told, what became of each telling, and telling it once more."""

from flask import Response, request

from mailroom.api.routes import webhooks
from mailroom.api.services import services
from mailroom.model.errors import InvalidMessage
from mailroom.store.events.deliveries import OWN, TYPES
from mailroom.web.layout import done, may, page, pages

blueprint = pages("webhooks")

PAGE_LENGTH = 50


@blueprint.get("/webhooks")
def list_webhooks() -> Response:
    """All of them, and a form for another."""
    return _list()


@blueprint.post("/webhooks")
def create() -> Response:
    """Have a URL told of what happens, as `POST /v1/webhooks` does."""
    try:
        id = webhooks.create(
            {"url": request.form.get("url", "").strip(), "events": request.form.getlist("events")}
        )
    except InvalidMessage as e:
        return _list(wrong=[error.detail for error in e.errors])
    return done(f"/webhooks/{id}", "added")


@blueprint.get("/webhooks/<id>")
def webhook(id: str) -> Response:
    """Show a webhook, with its secret for who may change it, and what it was told."""
    row = webhooks.find(id)
    asked = {"after": after} if (after := request.args.get("after", "")) else {}
    rows, limit = webhooks.find_deliveries(id, asked | {"limit": str(PAGE_LENGTH)})
    return page(
        "webhook.html",
        live=True,
        hook=webhooks.webhook_json(row, with_secret=may("POST", "/webhooks/<id>/change")),
        is_own=id == OWN,
        types=TYPES,
        rows=[webhooks.delivery_json(one) for one in rows[:limit]],
        next=str(rows[limit - 1]["number"]) if len(rows) > limit else None,
    )


@blueprint.post("/webhooks/<id>/change")
def change(id: str) -> Response:
    """Stop and start it, or choose what it is told."""
    if enabled := request.form.get("enabled"):
        webhooks.change(id, {"enabled": enabled == "yes"})
    else:
        webhooks.change(id, {"events": request.form.getlist("events")})
    return done(f"/webhooks/{id}", "saved")


@blueprint.post("/webhooks/<id>/test")
def test(id: str) -> Response:
    """Have a test delivered."""
    webhooks.post_test(id)
    return done(f"/webhooks/{id}", "tested")


@blueprint.post("/webhooks/<id>/replay/<number>")
def replay(id: str, number: str) -> Response:
    """Tell it once more."""
    webhooks.replay_delivery(id, number)
    return done(f"/webhooks/{id}", "replayed")


@blueprint.post("/webhooks/<id>/delete")
def delete(id: str) -> Response:
    """Forget it and its log."""
    webhooks.delete_webhook(id)
    return done("/webhooks", "deleted")


def _list(wrong: list[str] | None = None) -> Response:
    rows = [webhooks.webhook_json(row) for row in services().webhooks.all()]
    return page(
        "webhooks.html",
        status=422 if wrong else 200,
        rows=rows,
        wrong=wrong or [],
        types=TYPES,
        own=OWN,
        entered=request.form,
    )
