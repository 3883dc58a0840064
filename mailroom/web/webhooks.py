"""The pages of webhooks: add, change and test them, and see and repeat their deliveries."""

from flask import Response, request

from mailroom.api.routes import webhooks
from mailroom.api.services import services
from mailroom.model.errors import InvalidMessage
from mailroom.store.events.webhook_events import OWN, TYPES
from mailroom.web.layout import details, done, may, page, pages, query_params, status_of

blueprint = pages("webhooks")

PAGE_LENGTH = 50


@blueprint.get("/webhooks")
def list_webhooks() -> Response:
    """List all webhooks, with a form to add one."""
    return _list()


@blueprint.post("/webhooks")
def create() -> Response:
    """Add a webhook, as `POST /v1/webhooks` does."""
    url, events = request.form.get("url", "").strip(), request.form.getlist("events")
    try:
        id = webhooks.create({"url": url, "events": events})
    except InvalidMessage as e:
        return _list(errors=details(e.errors))
    return done(f"/webhooks/{id}", "added")


@blueprint.get("/webhooks/<id>")
def show_webhook(id: str) -> Response:
    """Show a webhook and its deliveries; its secret only to those who may change it."""
    row = webhooks.find(id)
    params = {"limit": str(PAGE_LENGTH)} | query_params("after")
    rows, limit = webhooks.find_deliveries(id, params)
    deliveries = [webhooks.delivery_json(row) for row in rows[:limit]]
    return page(
        "webhook.html",
        live=True,
        hook=webhooks.webhook_json(row, with_secret=may("POST", "/webhooks/<id>/change")),
        is_own=id == OWN,
        types=TYPES,
        rows=deliveries,
        next=str(rows[limit - 1]["number"]) if len(rows) > limit else None,
    )


@blueprint.post("/webhooks/<id>/change")
def change(id: str) -> Response:
    """Enable or disable a webhook, or choose its events."""
    if enabled := request.form.get("enabled"):
        webhooks.change(id, {"enabled": enabled == "yes"})
    else:
        webhooks.change(id, {"events": request.form.getlist("events")})
    return done(f"/webhooks/{id}", "saved")


@blueprint.post("/webhooks/<id>/test")
def test(id: str) -> Response:
    """Send a test delivery."""
    webhooks.post_test(id)
    return done(f"/webhooks/{id}", "tested")


@blueprint.post("/webhooks/<id>/replay/<number>")
def replay(id: str, number: str) -> Response:
    """Repeat a delivery."""
    webhooks.replay_delivery(id, number)
    return done(f"/webhooks/{id}", "replayed")


@blueprint.post("/webhooks/<id>/delete")
def delete(id: str) -> Response:
    """Delete a webhook and the log of its deliveries."""
    webhooks.delete_webhook(id)
    return done("/webhooks", "deleted")


def _list(errors: list[str] | None = None) -> Response:
    rows = [webhooks.webhook_json(row) for row in services().webhooks.all()]
    return page(
        "webhooks.html",
        status=status_of(errors),
        rows=rows,
        errors=errors or [],
        types=TYPES,
        own=OWN,
        entered=request.form,
    )
