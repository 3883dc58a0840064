"""Requests of the collection about errors, the service itself and its inbox."""

from tools.postman.request import PostmanRequest

ERRORS = (
    PostmanRequest(
        name="A mail that cannot be sent",
        route="POST /v1/messages",
        status=422,
        body={"to": "bob", "subjct": "Hello"},
        description="Two mistakes; the answer names both at once.",
        expects={
            "it says which fields and why": """
pm.expect(answer.code).to.equal('validation_error');
pm.expect(answer.errors.map(e => e.pointer)).to.have.members(['#/to', '#/subjct']);
answer.errors.forEach(e => pm.expect(e.detail).to.include('expected'));
"""
        },
    ),
    PostmanRequest(
        name="No JSON",
        route="POST /v1/messages",
        status=400,
        body='{"to": "bob@example.org",',
        description="It says where it ends to be JSON.",
        expects={"it says where": "pm.expect(answer.detail).to.include('line 1');"},
    ),
    PostmanRequest(
        name="Another media type",
        route="POST /v1/messages",
        status=415,
        headers={"Content-Type": "text/plain"},
        body='{"to": "bob@example.org"}',
        description="A browser's page of another site could send that.",
        expects={
            "it says which": """
pm.expect(answer.detail).to.include('application/json');
"""
        },
    ),
    PostmanRequest(
        name="Without the right key",
        route="GET /v1/messages",
        status=401,
        headers={"X-API-Key": "wrong", "X-Forwarded-For": "203.0.113.1"},
        sends_key=False,
        description="A wrong key; and where there are no keys, a request that came through a proxy.",
        expects={
            "it says how to name one": """
pm.expect(JSON.stringify(pm.response.headers.all())).to.match(/WWW-Authenticate.*Bearer/i);
pm.expect(answer.code).to.be.oneOf(['missing_api_key', 'invalid_api_key']);
"""
        },
    ),
    PostmanRequest(
        name="No such message",
        route="GET /v1/messages/<id>",
        status=404,
        path_values={"id": "none"},
        description="It may be too old (`RETENTION_DAYS`).",
        expects={"it says what came": "pm.expect(answer.detail).to.include('none');"},
    ),
    PostmanRequest(
        name="A filter that is none",
        route="GET /v1/messages",
        status=422,
        query={"status": "lost"},
        description="It lists those that are.",
        expects={"it says which": "pm.expect(answer.errors[0].pointer).to.equal('?status');"},
    ),
)

SERVICE = (
    PostmanRequest(
        name="Ping",
        route="GET /ping",
        description="Something answers.",
        expects={
            "pong": """
pm.expect(answer).to.eql({status: 'success', message: 'pong'});
"""
        },
    ),
    PostmanRequest(
        name="Alive?",
        route="GET /livez",
        description="Nothing else is looked at.",
        expects={"ok": "pm.expect(answer.status).to.equal('ok');"},
    ),
    PostmanRequest(
        name="Ready?",
        route="GET /readyz",
        description="Database, broker, worker and threads, each in words.",
        expects={
            "ready": """
pm.expect(answer.checks.database).to.equal('ok');
pm.expect(answer.checks).to.include.all.keys('database', 'clock', 'broker', 'worker', 'mailboxes', 'threads');
"""
        },
    ),
    PostmanRequest(
        name="Can my accounts send?",
        route="GET /v1/accounts",
        description="Each account's state and budget.",
        expects={
            "each says why": """
answer.data.forEach(one => pm.expect(one.why).to.be.a('string').and.not.be.empty);
"""
        },
    ),
    PostmanRequest(
        name="Try an account now",
        route="POST /v1/accounts/<path:account>/retry",
        path_values={"account": "default"},
        status=409,
        description=(
            "One that a server has turned away is tried by one mail at once; one that can send needs "
            "no trying."
        ),
        expects={"it can send": "pm.expect(answer.detail).to.include('that can');"},
    ),
    PostmanRequest(
        name="Numbers for Prometheus",
        route="GET /metrics",
        description="Counters, depths and latencies.",
        expects={
            "it is up": """
pm.expect(pm.response.text()).to.match(/^mailasync_up 1/m);
"""
        },
    ),
    PostmanRequest(
        name="This API, described",
        route="GET /openapi.json",
        description="OpenAPI 3.1; `/docs` shows it to a person.",
        expects={
            "all is in it": """
pm.expect(answer.openapi).to.match(/^3\\.1/);
pm.expect(answer.paths).to.include.keys('/', '/v1/messages', '/v1/jobs');
"""
        },
    ),
    PostmanRequest(
        name="The first page",
        route="GET /",
        description="For a person: what to do next.",
        expects={
            "a page": """
pm.expect(pm.response.text()).to.include('mailasync');
"""
        },
    ),
)

INBOX = (
    PostmanRequest(
        name="One mail",
        route="GET /inbox/api/messages/<id>",
        path_values={"id": "{{mailId}}"},
        description="The mail of `Wait for the mail in the inbox`.",
        expects={"it is that": "pm.expect(answer.subject).to.equal('Hello from Postman');"},
    ),
    PostmanRequest(
        name="Have the next mail deferred",
        route="PUT /inbox/api/failure",
        body={"failure": "defer", "count": 1},
        description=(
            "`defer` (451), `refuse` (550) or `drop` (the link is cut after the final dot), to see "
            "what becomes of it then."
        ),
        expects={"it is set": "pm.expect(answer).to.eql({failure: 'defer', count: 1});"},
    ),
    PostmanRequest(
        name="All is well again",
        route="PUT /inbox/api/failure",
        body={"failure": None},
        description="null takes it back.",
        expects={"nothing is to fail": "pm.expect(answer.failure).to.equal(null);"},
    ),
    PostmanRequest(
        name="What is the next mail to meet?",
        route="GET /inbox/api/failure",
        description="Nothing bad, unless somebody wants it.",
        expects={"nothing": "pm.expect(answer.count).to.equal(0);"},
    ),
    PostmanRequest(
        name="Delete one mail",
        route="DELETE /inbox/api/messages/<id>",
        path_values={"id": "{{mailId}}"},
        status=204,
        description="Only this one.",
    ),
    PostmanRequest(
        name="Empty the inbox",
        route="DELETE /inbox/api/messages",
        status=204,
        description="Forgets all mails that came.",
    ),
)
