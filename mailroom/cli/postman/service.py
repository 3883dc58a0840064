"""The collection's requests about templates, suppressions, webhooks, errors, the service itself and its inbox."""

from mailroom.cli.postman.asking import FRESH_ADDRESS, Ask

_TEMPLATE = {"name": "postman-receipt"}
_WEBHOOK = {"id": "{{webhookId}}"}

TEMPLATES = (
    Ask(name="Save a template", route="PUT /v1/templates/<name>", at=_TEMPLATE, status=(200, 201),
        told="201 where it is new, 200 where it replaces one. The CSS in its HTML is inlined.",
        body={"subject": "Order {{ order }}", "html": "<style>b { color: green }</style><p>Thank you, <b>{{ name }}</b>.</p>"},
        expects={"it is there": "pm.expect(answer.subject).to.equal('Order {{ order }}');"}),
    Ask(name="Look at it", route="GET /v1/templates/<name>", at=_TEMPLATE, told="With its texts.",
        expects={"as it was saved": "pm.expect(answer.html).to.include('{{ name }}');"}),
    Ask(name="See what a mail would say", route="POST /v1/templates/<name>/preview", at=_TEMPLATE, told="Nothing is sent.",
        body={"variables": {"order": 42, "name": "Bob & Carol"}}, expects={"filled in, and safe": """
pm.expect(answer.subject).to.equal('Order 42');
pm.expect(answer.html).to.include('Bob &amp; Carol').and.to.include('color: green');
pm.expect(answer.text).to.include('Thank you, Bob & Carol.');
"""}),
    Ask(name="Send it", route="POST /v1/messages", status=202, fresh={"recipient": FRESH_ADDRESS}, told="`template` instead of a text.",
        body={"to": "{{recipient}}", "template": {"name": "postman-receipt", "variables": {"order": 42, "name": "Bob"}}}),
    Ask(name="Read the mail of the template", route="GET /inbox/api/messages", query={"to": "{{recipient}}", "wait": "30"},
        told="As Bob sees it.", expects={"it is filled in": "pm.expect(answer.data[0].subject).to.equal('Order 42');"}),
    Ask(name="A variable is missing", route="POST /v1/templates/<name>/preview", at=_TEMPLATE, status=422,
        body={"variables": {"order": 42}},
        told="No mail goes with a hole in it.", expects={"it says which": "pm.expect(answer.detail).to.include('name');"}),
    Ask(name="All templates", route="GET /v1/templates", told="By name, a page at a time.", expects={
        "it is among them": "pm.expect(answer.data.map(one => one.name)).to.include('postman-receipt');"}),
    Ask(name="Delete it", route="DELETE /v1/templates/<name>", at=_TEMPLATE, status=204, told="Mails that were accepted stay as they are."),
)

SUPPRESSIONS = (
    Ask(name="Send somebody nothing any more", route="POST /v1/suppressions", status=201, fresh={"recipient": FRESH_ADDRESS},
        body={"address": "{{recipient}}", "detail": "asked by phone"}, told="One `address`, or many `addresses`.",
        expects={"it is noted": """
pm.expect(answer.address).to.equal(pm.collectionVariables.get('recipient'));
pm.expect(answer.reason).to.equal('manual');
"""}),
    Ask(name="A mail to somebody who wants none", route="POST /v1/messages", status=202, body={"to": "{{recipient}}", "subject": "News"},
        told="It is accepted, and not sent.", kept={"id": "answer.id"}),
    Ask(name="What became of it", route="GET /v1/messages/<id>", told="Where somebody else gets it too, that one does.",
        expects={"it is suppressed": "pm.expect(answer.status).to.equal('suppressed');"}),
    Ask(name="Why does Bob get no mail?", route="GET /v1/suppressions/<path:address>", at={"address": "{{recipient}}"},
        told="Since when, and why.",
        expects={"the reason": "pm.expect(answer.detail).to.equal('asked by phone');"}),
    Ask(name="Who gets no mail?", route="GET /v1/suppressions", query={"reason": "manual", "limit": "5"}, told="The newest first.",
        expects={"Bob is among them": """
pm.expect(answer.data.map(one => one.address)).to.include(pm.collectionVariables.get('recipient'));
"""}),
    Ask(name="Let him get mail again", route="DELETE /v1/suppressions/<path:address>", at={"address": "{{recipient}}"}, status=204,
        told="What was suppressed meanwhile is not sent by that."),
    Ask(name="He is not suppressed", route="GET /v1/suppressions/<path:address>", at={"address": "{{recipient}}"}, status=404,
        told="The same question again."),
)

WEBHOOKS = (
    Ask(name="Tell my service what happens", route="POST /v1/webhooks", status=201,
        told="Put your own https URL into `url`; this one leads nowhere.",
        body={"url": "https://hooks.invalid/mail", "events": ["message.sent", "message.failed"]}, expects={"the secret is shown": """
pm.expect(answer.secret).to.match(/^whsec_/);
pm.expect(answer.enabled).to.equal(true);
"""}, kept={"webhookId": "answer.id"}),
    Ask(name="All webhooks", route="GET /v1/webhooks", told="Without their secrets.", expects={"it is among them": """
const ours = answer.data.find(one => one.id === pm.collectionVariables.get('webhookId'));
pm.expect(ours.events).to.eql(['message.sent', 'message.failed']);
pm.expect(ours).to.not.have.property('secret');
"""}),
    Ask(name="One webhook", route="GET /v1/webhooks/<id>", at=_WEBHOOK, told="To an admin with its secret.",
        expects={"its URL": "pm.expect(answer.url).to.equal('https://hooks.invalid/mail');"}),
    Ask(name="Try it", route="POST /v1/webhooks/<id>/test", at=_WEBHOOK, status=202, told="Delivers a `webhook.test`.",
        expects={"on its way": "pm.expect(answer.type).to.equal('webhook.test');"}, kept={"number": "answer.number"}),
    Ask(name="What was it told?", route="GET /v1/webhooks/<id>/deliveries", at=_WEBHOOK, told="The log, the newest first.", expects={
        "the test is there": "pm.expect(answer.data[0].number).to.equal(pm.collectionVariables.get('number'));"}),
    Ask(name="Tell it once more", route="POST /v1/webhooks/<id>/deliveries/<number>/replay", at=_WEBHOOK, status=(202, 409),
        told="Under the same id; 409 while a worker is at it."),
    Ask(name="Tell it nothing for now", route="PATCH /v1/webhooks/<id>", at=_WEBHOOK, body={"enabled": False},
        told="What is not there stays.",
        expects={"it is off": "pm.expect(answer.enabled).to.equal(false);"}),
    Ask(name="Forget it", route="DELETE /v1/webhooks/<id>", at=_WEBHOOK, status=204, told="With its log."),
)

ERRORS = (
    Ask(name="A mail that cannot be sent", route="POST /v1/messages", status=422, body={"to": "bob", "subjct": "Hello"},
        told="Two mistakes; the answer names both at once.", expects={"it says which fields and why": """
pm.expect(answer.code).to.equal('validation_error');
pm.expect(answer.errors.map(e => e.pointer)).to.have.members(['#/to', '#/subjct']);
answer.errors.forEach(e => pm.expect(e.detail).to.include('expected'));
"""}),
    Ask(name="No JSON", route="POST /v1/messages", status=400, body='{"to": "bob@example.org",', told="It says where it ends to be JSON.",
        expects={"it says where": "pm.expect(answer.detail).to.include('line 1');"}),
    Ask(name="Another media type", route="POST /v1/messages", status=415, headers={"Content-Type": "text/plain"},
        body='{"to": "bob@example.org"}',
        told="A browser's page of another site could send that.", expects={"it says which": """
pm.expect(answer.detail).to.include('application/json');
"""}),
    Ask(name="Without the right key", route="GET /v1/messages", status=401,
        headers={"X-API-Key": "wrong", "X-Forwarded-For": "203.0.113.1"},
        told="A wrong key; and where there are no keys, a request that came through a proxy.", expects={"it says how to name one": """
pm.expect(JSON.stringify(pm.response.headers.all())).to.match(/WWW-Authenticate.*Bearer/i);
pm.expect(answer.code).to.be.oneOf(['missing_api_key', 'invalid_api_key']);
"""}),
    Ask(name="No such message", route="GET /v1/messages/<id>", status=404, at={"id": "none"}, told="It may be too old (`RETENTION_DAYS`).",
        expects={"it says what came": "pm.expect(answer.detail).to.include('none');"}),
    Ask(name="A filter that is none", route="GET /v1/messages", status=422, query={"status": "lost"}, told="It lists those that are.",
        expects={"it says which": "pm.expect(answer.errors[0].pointer).to.equal('?status');"}),
)

SERVICE = (
    Ask(name="Ping", route="GET /ping", told="Something answers.", expects={"pong": """
pm.expect(answer).to.eql({status: 'success', message: 'pong'});
"""}),
    Ask(name="Alive?", route="GET /livez", told="Nothing else is looked at.", expects={"ok": "pm.expect(answer.status).to.equal('ok');"}),
    Ask(name="Ready?", route="GET /readyz", told="Database, broker, worker and threads, each in words.", expects={"ready": """
pm.expect(answer.checks.database).to.equal('ok');
pm.expect(answer.checks).to.have.all.keys('database', 'clock', 'broker', 'worker', 'threads');
"""}),
    Ask(name="Can my accounts send?", route="GET /v1/accounts", told="Each account's state and budget.", expects={"each says why": """
answer.data.forEach(one => pm.expect(one.why).to.be.a('string').and.not.be.empty);
"""}),
    Ask(name="Try an account now", route="POST /v1/accounts/<path:account>/retry", at={"account": "default"}, status=409,
        told="One that a server has turned away is tried by one mail at once; one that can send needs no trying.",
        expects={"it can send": "pm.expect(answer.detail).to.include('that can');"}),
    Ask(name="Numbers for Prometheus", route="GET /metrics", told="Counters, depths and latencies.", expects={"it is up": """
pm.expect(pm.response.text()).to.match(/^mailasync_up 1/m);
"""}),
    Ask(name="This API, described", route="GET /openapi.json", told="OpenAPI 3.1; `/docs` shows it to a person.",
        expects={"all is in it": """
pm.expect(answer.openapi).to.match(/^3\\.1/);
pm.expect(answer.paths).to.include.keys('/', '/v1/messages', '/v1/jobs');
"""}),
    Ask(name="The first page", route="GET /", told="For a person: what to do next.", expects={"a page": """
pm.expect(pm.response.text()).to.include('mailasync');
"""}),
)

INBOX = (
    Ask(name="One mail", route="GET /inbox/api/messages/<id>", at={"id": "{{mailId}}"},
        told="The mail of `Wait for the mail in the inbox`.",
        expects={"it is that": "pm.expect(answer.subject).to.equal('Hello from Postman');"}),
    Ask(name="Have the next mail deferred", route="PUT /inbox/api/failure", body={"failure": "defer", "count": 1},
        told="`defer` (451), `refuse` (550) or `drop` (the link is cut after the final dot), to see what becomes of it then.",
        expects={"it is set": "pm.expect(answer).to.eql({failure: 'defer', count: 1});"}),
    Ask(name="All is well again", route="PUT /inbox/api/failure", body={"failure": None}, told="null takes it back.",
        expects={"nothing is to fail": "pm.expect(answer.failure).to.equal(null);"}),
    Ask(name="What is the next mail to meet?", route="GET /inbox/api/failure", told="Nothing bad, unless somebody wants it.",
        expects={"nothing": "pm.expect(answer.count).to.equal(0);"}),
    Ask(name="Delete one mail", route="DELETE /inbox/api/messages/<id>", at={"id": "{{mailId}}"}, status=204, told="Only this one."),
    Ask(name="Empty the inbox", route="DELETE /inbox/api/messages", status=204, told="Forgets all mails that came."),
)
