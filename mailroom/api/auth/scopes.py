"""Lists the scopes for every route; a key needs one of them, or `admin`."""

from flask import request

from mailroom.store.keys.api_keys import ApiKey, Scope

_ANY = (Scope.SEND, Scope.READ)
_SEND = (Scope.SEND,)
_READ = (Scope.READ,)
_ADMIN = (Scope.ADMIN,)

#: By method and rule, as Flask writes them. Ids cannot be guessed, so a key that sends may also read by id.
SCOPES: dict[str, tuple[Scope, ...]] = {
    "POST /": _SEND,
    "POST /v1/messages": _SEND,
    "POST /v1/messages/batch": _SEND,
    "POST /v1/messages/raw": _SEND,
    "GET /v1/messages": _READ,
    "GET /v1/messages/<id>": _ANY,
    "GET /v1/messages/<id>/events": _ANY,
    "GET /v1/messages/<id>/raw": _ANY,
    "POST /v1/messages/<id>/cancel": _ADMIN,
    "POST /v1/messages/<id>/hold": _ADMIN,
    "POST /v1/messages/<id>/release": _ADMIN,
    "POST /v1/messages/<id>/retry": _ADMIN,
    "POST /v1/messages/<id>/reschedule": _ADMIN,
    "POST /v1/messages/<id>/resend": _ADMIN,
    "POST /v1/jobs": _SEND,
    "GET /v1/jobs": _READ,
    "GET /v1/jobs/<id>": _ANY,
    "GET /v1/jobs/<id>/file": _ANY,
    "POST /v1/jobs/<id>/cancel": _ADMIN,
    "POST /v1/jobs/<id>/retry": _ADMIN,
    "GET /v1/job-types": _ANY,
    "GET /v1/accounts": _READ,
    "POST /v1/accounts/<path:account>/retry": _ADMIN,
    "GET /v1/templates": _READ,
    "PUT /v1/templates/<name>": _ADMIN,
    "GET /v1/templates/<name>": _READ,
    "DELETE /v1/templates/<name>": _ADMIN,
    "POST /v1/templates/<name>/preview": _READ,
    "GET /v1/suppressions": _READ,
    "POST /v1/suppressions": _ADMIN,
    "GET /v1/suppressions/<path:address>": _READ,
    "DELETE /v1/suppressions/<path:address>": _ADMIN,
    "POST /v1/webhooks": _ADMIN,
    "GET /v1/webhooks": _READ,
    "GET /v1/webhooks/<id>": _READ,
    "PATCH /v1/webhooks/<id>": _ADMIN,
    "DELETE /v1/webhooks/<id>": _ADMIN,
    "POST /v1/webhooks/<id>/test": _ADMIN,
    "GET /v1/webhooks/<id>/deliveries": _READ,
    "POST /v1/webhooks/<id>/deliveries/<number>/replay": _ADMIN,
    "GET /unsubscribe/<token>": _ANY,  # on an open path
    "POST /unsubscribe/<token>": _ANY,
    "GET /metrics": _READ,
    "GET /openapi.json": _ANY,
    "GET /docs": _ANY,
    "GET /": _ANY,
    "GET /sign-in": _ANY,  # on an open path
    "POST /sign-in": _ANY,
    "POST /sign-out": _ANY,
    "GET /live": _ANY,
    "GET /dashboard": _READ,
    "POST /dashboard/release-held": _ADMIN,
    "POST /accounts/<path:account>/retry": _ADMIN,
    "GET /messages": _READ,
    "GET /messages/<id>": _ANY,
    "GET /messages/<id>/html": _ANY,
    "POST /messages/<id>/<action>": _ADMIN,
    "GET /compose": _SEND,
    "POST /compose": _SEND,
    "GET /jobs": _READ,
    "GET /jobs/<id>": _ANY,
    "POST /jobs/<id>/cancel": _ADMIN,
    "POST /jobs/<id>/retry": _ADMIN,
    "GET /templates": _READ,
    "GET /templates/<name>": _READ,
    "POST /templates/<name>": _ADMIN,
    "POST /templates/<name>/preview": _READ,
    "POST /templates/<name>/delete": _ADMIN,
    "GET /suppressions": _READ,
    "POST /suppressions": _ADMIN,
    "POST /suppressions/remove": _ADMIN,
    "GET /webhooks": _READ,
    "POST /webhooks": _ADMIN,
    "GET /webhooks/<id>": _READ,
    "POST /webhooks/<id>/change": _ADMIN,
    "POST /webhooks/<id>/test": _ADMIN,
    "POST /webhooks/<id>/replay/<number>": _ADMIN,
    "POST /webhooks/<id>/delete": _ADMIN,
    "GET /keys": _ADMIN,
    "POST /keys": _ADMIN,
    "POST /keys/<id>/revoke": _ADMIN,
    "GET /static/web/<path:filename>": _ANY,
    "GET /ping": _ANY,
    "GET /livez": _ANY,
    "GET /readyz": _ANY,
    "GET /inbox": _READ,
    "GET /inbox/": _READ,
    "GET /inbox/<id>": _READ,
    "GET /inbox/<id>/html": _READ,
    "GET /inbox/<id>/source": _READ,
    "GET /inbox/<id>/attachments/<int:number>": _READ,
    "GET /inbox/live": _READ,
    "POST /inbox/<id>/delete": _ADMIN,
    "POST /inbox/delete": _ADMIN,
    "POST /inbox/failure": _ADMIN,
    "GET /inbox/static/<path:filename>": _READ,
    "GET /inbox/api/messages": _READ,
    "GET /inbox/api/messages/<id>": _READ,
    "DELETE /inbox/api/messages": _ADMIN,
    "DELETE /inbox/api/messages/<id>": _ADMIN,
    "GET /inbox/api/failure": _READ,
    "PUT /inbox/api/failure": _ADMIN,
}


def needed(method: str, rule: str) -> tuple[Scope, ...]:
    """Return the scopes of which a key needs one.

    A route that is not listed, such as one that an operator added, needs `read` for GET and else `admin`.
    """
    method = "GET" if method == "HEAD" else method
    unlisted = {"OPTIONS": _ANY, "GET": _READ}.get(method, _ADMIN)
    return SCOPES.get(f"{method} {rule}", unlisted)


def lacking(key: ApiKey) -> tuple[Scope, ...]:
    """Return the scopes of which the key lacks one for the current request; empty if it may make it."""
    if request.url_rule is None or Scope.ADMIN in key.scopes:
        return ()
    scopes = needed(request.method, request.url_rule.rule)
    return () if key.scopes & set(scopes) else scopes
