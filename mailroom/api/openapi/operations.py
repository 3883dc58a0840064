"""Lists what each route of this service takes and answers.

document.py makes the description of it, and the Postman collection (tools/postman) is held to it.
"""

from dataclasses import dataclass, field

from mailroom.api.answers import ID, TEXT, TIME, Schema, one_of
from mailroom.model.message import State
from mailroom.store.jobs.jobs import JobState
from mailroom.store.messages.suppressions import Reason

JSON = "application/json"
PROBLEM = "application/problem+json"

#: Header fields of answers, by name; X-Request-Id is in all of them.
HEADERS: dict[str, tuple[str, Schema]] = {
    "X-Request-Id": ("The id of the request, which is in the log too: the client's own where it sent one.", TEXT),
    "Location": ("Where it is from now on.", TEXT),
    "Idempotency-Replayed": ("There where the answer is that to an earlier request with the same Idempotency-Key.", {"const": "true"}),
    "Preference-Applied": ("How long it was waited at most.", {"type": "string", "pattern": "^wait=[0-9]+$"}),
    "RateLimit": ("What is left, where the key has a limit.", TEXT),
    "RateLimit-Policy": ("The limit, where the key has one.", TEXT),
    "RateLimit-Limit": ("Messages a minute.", {"type": "integer"}),
    "RateLimit-Remaining": ("How many are left.", {"type": "integer"}),
    "RateLimit-Reset": ("Seconds until all of them are there again.", {"type": "integer"}),
    "Retry-After": ("Seconds to wait.", {"type": "integer"}),
    "Accept-Encoding": ("The content codings that are taken: none.", {"const": "identity"}),
    "WWW-Authenticate": ("How to name the key.", TEXT),
}
_RATES = ("RateLimit", "RateLimit-Policy", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A part of a request beside its body."""

    name: str
    told: str
    schema: Schema = field(default_factory=lambda: TEXT)
    place: str = "query"


@dataclass(frozen=True, kw_only=True)
class Returned:
    """An answer: what it means, and the schema of its body by media type."""

    told: str
    content: dict[str, Schema | str]  #: a name is one of `answer_schemas()`
    headers: tuple[str, ...] = ()  #: a "!" at the end: it is always there


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A route. Its summary is the docstring of its view, and what a key needs for it is in api/auth/scopes.py."""

    group: str
    answers: dict[int, Returned]
    body: str = ""  #: the name of a schema of a request's body
    form: str = ""  #: the field of a form that holds the same, beside files
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[int, ...] = ()
    is_open: bool = False  #: to whoever asks


REFUSALS: dict[int, Returned] = {status: Returned(told=told, content={PROBLEM: "Problem"}, headers=headers) for status, told, headers in (
    (400, "The body cannot be read, or a header field of the request.", ()),
    (401, "No API key came, or one that is not known.", ("WWW-Authenticate!",)),
    (403, "The key may not do this, or not send from this address.", ()),
    (404, "There is no such thing.", ()),
    (409, "It is in a state in which this cannot be done; or the Idempotency-Key belongs to another request.", ()),
    (413, "The body is larger than REQUEST_MAX_BYTES.", ()),
    (415, "The body is of another media type, or in a content coding such as gzip.", ("Accept-Encoding",)),
    (422, "Fields or parameters are wrong; `errors` has each of them.", ()),
    (429, "The key has sent as much as it may for now; or too many wrong keys came from this address.",
     ("Retry-After!", *_RATES)),
    (503, "The database is away, and nothing was done; or, where `code` is `commit_unconfirmed`, it may have been: `Location`, `id` or "
          "`ids` say where to look. `Retry-After` is there where sending the request again does nothing twice.",
     ("Retry-After", "Location")),
)}
_BODY = (400, 413, 415, 422)


def is_strict(route: str) -> bool:
    """Tell whether a route refuses parameters that it does not know; those for people and monitors ignore them."""
    return route == "POST /" or route.partition(" ")[2].startswith(("/v1/", "/inbox/api/"))


def _json(name: str, told: str, *headers: str) -> Returned:
    return Returned(told=told, content={JSON: name}, headers=headers)


_GONE = Returned(told="Done.", content={})
_LIMIT = Parameter(name="limit", told="How many.", schema={"type": "integer", "minimum": 1, "maximum": 100, "default": 20})
_AFTER = Parameter(name="after", told="`next` of the page before.")
_PREFER = Parameter(name="Prefer", place="header", told="`wait=N`: answer when it has ended, after N seconds at most, and 60 (RFC 7240).",
                    schema={"type": "string", "examples": ["wait=10"]})
#: Bare, or a string in quotes (RFC 9651, 3.3.3).
_KEY_PATTERN = r'^([!#-~][ -~]{0,255}|"([ !#-\[\]-~]|\\["\\]){1,256}")$'
_KEY = Parameter(name="Idempotency-Key", place="header", schema={"type": "string", "pattern": _KEY_PATTERN},
                 told="A request that comes again with the same key is answered as the first time, and does nothing else.")
_MESSAGE = _json("Message", "The message.")
_JOB_ACCEPTED = _json("Job", "It is accepted.", "Location!", "Idempotency-Replayed", "Preference-Applied", *_RATES)


def _accepts(status: int) -> dict[int, Returned]:
    """Return what accepting a mail answers.

    200 is also the answer to a dry run, and to whoever waited until the mail has ended.
    """
    every: dict[int, Schema | str] = {
        200: {"anyOf": [f"{'Accepted' if status == 200 else 'Message'}", "DryRun", *(["Message"] if status == 200 else [])]},
        202: {"anyOf": ["Accepted", "Message"]}}
    told = {200: "It is accepted; or it has ended, where the client waited; or what a dry run would send.", 202: "It is accepted."}
    headers = ("Idempotency-Replayed", "Preference-Applied", *_RATES)
    return {one: Returned(told=told[one], content={JSON: every[one]}, headers=("Location!" if one == 202 else "Location", *headers))
            for one in ({200, status})}


def _act(body: str = "") -> Operation:
    return Operation(group="Messages", answers={200: _MESSAGE}, refusals=(404, 409, *(_BODY if body else ())), body=body)


OPERATIONS: dict[str, Operation] = {
    "POST /": Operation(group="Messages", answers=_accepts(200), body="MailAfterJobRequest", form="message", parameters=(_KEY, _PREFER),
                        refusals=(*_BODY, 409, 429)),
    "POST /v1/messages": Operation(group="Messages", answers=_accepts(202), body="MailAfterJobRequest", form="message",
                                   parameters=(_KEY, _PREFER), refusals=(*_BODY, 409, 429)),
    "POST /v1/messages/batch": Operation(
        group="Messages", answers={202: _json("AcceptedBatch", "All are accepted.", "Idempotency-Replayed", *_RATES)}, body="BatchRequest",
        parameters=(_KEY,), refusals=(*_BODY, 409, 429)),
    "GET /v1/messages": Operation(group="Messages", answers={200: _json("MessagePage", "A page.")}, refusals=(422,), parameters=(
        _LIMIT, _AFTER,
        Parameter(name="status", told="Only those in this state.", schema=one_of(State)),
        Parameter(name="to", told="Only those that this address gets."),
        Parameter(name="tag", told="Only those with this tag."),
        Parameter(name="q", told="Only those with these words in their subject, or in the address of a recipient."),
        Parameter(name="since", told="Only those that were accepted then or later.", schema=TIME),
        Parameter(name="until", told="Only those that were accepted before.", schema=TIME))),
    "GET /v1/messages/<id>": Operation(group="Messages", parameters=(_PREFER,), refusals=(404,), answers={
        200: _json("Message", "The message.", "Preference-Applied")}),
    "GET /v1/messages/<id>/events": Operation(group="Messages", answers={200: _json("Events", "Its timeline.")}, refusals=(404,)),
    "GET /v1/messages/<id>/raw": Operation(group="Messages", refusals=(404, 409), answers={
        200: Returned(told="The mail.", content={"message/rfc822": TEXT})}),
    "POST /v1/messages/<id>/cancel": _act(),
    "POST /v1/messages/<id>/hold": _act(),
    "POST /v1/messages/<id>/release": _act(),
    "POST /v1/messages/<id>/retry": _act(),
    "POST /v1/messages/<id>/reschedule": _act("RescheduleRequest"),
    "POST /v1/messages/<id>/resend": Operation(group="Messages", parameters=(_KEY,), refusals=(400, 404, 409), answers={
        202: _json("Message", "The new message.", "Location!", "Idempotency-Replayed")}),

    "POST /v1/jobs": Operation(
        group="Jobs", answers={200: _json("Job", "It has ended: the client waited.", *_JOB_ACCEPTED.headers), 202: _JOB_ACCEPTED},
        body="JobWithMailRequest", form="job", parameters=(_KEY, _PREFER), refusals=(*_BODY, 409, 429)),
    "GET /v1/jobs": Operation(group="Jobs", answers={200: _json("JobPage", "A page.")}, refusals=(422,), parameters=(
        _LIMIT, _AFTER,
        Parameter(name="status", told="Only those in this state.", schema=one_of(JobState)),
        Parameter(name="name", told="Only those of this type."),
        Parameter(name="queue", told="Only those on this queue."))),
    "GET /v1/jobs/<id>": Operation(group="Jobs", parameters=(_PREFER,), refusals=(404,), answers={
        200: _json("Job", "The job.", "Preference-Applied")}),
    "GET /v1/jobs/<id>/file": Operation(group="Jobs", refusals=(404,), answers={
        200: Returned(told="What it made.", content={"application/octet-stream": {}})}),
    "POST /v1/jobs/<id>/cancel": Operation(group="Jobs", answers={200: _json("Job", "The job.")}, refusals=(404, 409)),
    "POST /v1/jobs/<id>/retry": Operation(group="Jobs", parameters=(_KEY,), refusals=(400, 404, 409, 422, 429), answers={
        202: _json("Job", "The new job.", "Location!", "Idempotency-Replayed", *_RATES)}),
    "GET /v1/job-types": Operation(group="Jobs", answers={200: _json("JobTypes", "All of them.")}),

    "GET /v1/templates": Operation(group="Templates", answers={200: _json("TemplatePage", "A page.")}, refusals=(422,), parameters=(
        _LIMIT, Parameter(name="after", told="The last name of the page before."))),
    "PUT /v1/templates/<name>": Operation(group="Templates", body="StoreTemplateRequest", refusals=_BODY, answers={
        200: _json("Template", "It is replaced."), 201: _json("Template", "It is new.")}),
    "GET /v1/templates/<name>": Operation(group="Templates", answers={200: _json("Template", "The template.")}, refusals=(404,)),
    "DELETE /v1/templates/<name>": Operation(group="Templates", answers={204: _GONE}, refusals=(404,)),
    "POST /v1/templates/<name>/preview": Operation(group="Templates", body="PreviewRequest", refusals=(404, *_BODY), answers={
        200: _json("Preview", "What a mail would say.")}),

    "GET /v1/suppressions": Operation(
        group="Suppressions", answers={200: _json("SuppressionPage", "A page.")}, refusals=(422,), parameters=(
            _LIMIT, _AFTER, Parameter(name="reason", told="Only those for this reason.", schema=one_of(Reason)))),
    "POST /v1/suppressions": Operation(group="Suppressions", body="AskedSuppressions", refusals=_BODY, answers={201: Returned(
        told="The one, or how many of the many.", headers=("Location",),
        content={JSON: {"anyOf": ["Suppression", "SuppressionsAdded"]}})}),
    "GET /v1/suppressions/<path:address>": Operation(group="Suppressions", refusals=(404,), answers={
        200: _json("Suppression", "The suppression.")}),
    "DELETE /v1/suppressions/<path:address>": Operation(group="Suppressions", answers={204: _GONE}, refusals=(404,)),

    "POST /v1/webhooks": Operation(group="Webhooks", body="AskedWebhook", refusals=(*_BODY, 409), answers={
        201: _json("Webhook", "It is told from now on.", "Location!")}),
    "GET /v1/webhooks": Operation(group="Webhooks", answers={200: _json("Webhooks", "All of them.")}),
    "GET /v1/webhooks/<id>": Operation(group="Webhooks", answers={200: _json("Webhook", "The webhook.")}, refusals=(404,)),
    "PATCH /v1/webhooks/<id>": Operation(group="Webhooks", body="AskedChange", refusals=(404, 409, *_BODY), answers={
        200: _json("Webhook", "As it is now.")}),
    "DELETE /v1/webhooks/<id>": Operation(group="Webhooks", answers={204: _GONE}, refusals=(404,)),
    "POST /v1/webhooks/<id>/test": Operation(group="Webhooks", refusals=(404, 409), answers={202: _json("Delivery", "It is on its way.")}),
    "GET /v1/webhooks/<id>/deliveries": Operation(
        group="Webhooks", answers={200: _json("DeliveryPage", "A page.")}, refusals=(404, 422), parameters=(
            _LIMIT, _AFTER)),
    "POST /v1/webhooks/<id>/deliveries/<number>/replay": Operation(group="Webhooks", refusals=(404, 409), answers={
        202: _json("Delivery", "It is on its way.")}),

    "GET /v1/accounts": Operation(group="Service", answers={200: _json("Accounts", "All of them.")}),
    "POST /v1/accounts/<path:account>/retry": Operation(group="Service", refusals=(404, 409), answers={
        200: _json("Account", "As it is now.")}),
    "GET /metrics": Operation(group="Service", answers={200: Returned(
        told="The numbers.", content={"text/plain": TEXT, "application/openmetrics-text": TEXT})}),
    "GET /": Operation(group="Service", answers={200: Returned(told="A page.", content={"text/html": TEXT})}),
    "GET /ping": Operation(group="Service", answers={200: _json("Pong", "It answers.")}, is_open=True),
    "GET /livez": Operation(group="Service", answers={200: _json("Alive", "It lives.")}, is_open=True),
    "GET /readyz": Operation(group="Service", is_open=True, answers={
        200: _json("Readiness", "A mail would be accepted."),
        503: _json("Readiness", "It would not; or the workers read another database.")}),
    "GET /openapi.json": Operation(group="Service", answers={200: _json("OpenAPI", "This document.")}),

    "GET /inbox/api/messages": Operation(group="Inbox", answers={200: _json("Mails", "The newest first.")}, refusals=(422,), parameters=(
        Parameter(name="to", told="Only those to this address."),
        Parameter(name="wait", told="Answer when there is one, after so many seconds at most.",
                  schema={"type": "number", "minimum": 0, "maximum": 60, "default": 0}))),
    "GET /inbox/api/messages/<id>": Operation(group="Inbox", answers={200: _json("Mail", "The mail.")}, refusals=(404,)),
    "DELETE /inbox/api/messages": Operation(group="Inbox", answers={204: _GONE}),
    "DELETE /inbox/api/messages/<id>": Operation(group="Inbox", answers={204: _GONE}, refusals=(404,)),
    "GET /inbox/api/failure": Operation(group="Inbox", answers={200: _json("NextFailure", "What the next mails are to meet.")}),
    "PUT /inbox/api/failure": Operation(group="Inbox", body="AskedFailure", refusals=(415, 422), answers={
        200: _json("NextFailure", "As it is now.")}),
}

#: Schemas of what stands in a path; without one it is ID.
PLACES: dict[str, Schema] = {
    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,99}$"}, "address": {"type": "string", "minLength": 3},
    "account": {"type": "string", "minLength": 1},
    "number": {"type": "integer", "minimum": 1}, "id": ID}
#: Bodies to begin with, by the name of their schema.
EXAMPLES: dict[str, dict[str, object]] = {
    "MailAfterJobRequest": {"to": "you@example.org", "subject": "Hello", "contents": "The work is done."},
    "BatchRequest": {"common": {"subject": "News", "text": "All is well."}, "messages": [
        {"to": "bob@example.org"}, {"to": "carol@example.org"}]},
    "RescheduleRequest": {"delay": 60},
    "JobWithMailRequest": {"name": "simulate", "args": {"seconds": 2}, "notify": {
        "to": "you@example.org", "subject": "{{ job.name }}: {{ job.status }}", "contents": "It took {{ job.seconds }} seconds."}},
    "StoreTemplateRequest": {"subject": "Order {{ order }}", "html": "<p>Thank you, <b>{{ name }}</b>.</p>"},
    "PreviewRequest": {"variables": {"order": 42, "name": "Bob"}},
    "AskedSuppressions": {"address": "bob@example.org", "detail": "asked by phone"},
    "AskedWebhook": {"url": "https://hooks.example.org/mail", "events": ["message.sent", "message.failed"]},
    "AskedChange": {"enabled": False},
    "AskedFailure": {"failure": "defer", "count": 1}}
#: Pages for people, and what they are made of, begin with one of these.
PAGES = ("/docs", "/inbox", "/unsubscribe", "/sign-", "/live", "/dashboard", "/accounts", "/messages", "/compose", "/jobs", "/templates",
         "/suppressions", "/webhooks", "/keys")

