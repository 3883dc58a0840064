"""Requests of the collection about templates, suppressions and webhooks."""

from tools.postman.request import FRESH_ADDRESS, PostmanRequest

_TEMPLATE = {"name": "postman-receipt"}
_WEBHOOK = {"id": "{{webhookId}}"}

TEMPLATES = (
    PostmanRequest(
        name="Save a template",
        route="PUT /v1/templates/<name>",
        path_values=_TEMPLATE,
        status=(200, 201),
        description="201 where it is new, 200 where it replaces one. The CSS in its HTML is inlined.",
        body={
            "subject": "Order {{ order }}",
            "html": "<style>b { color: green }</style><p>Thank you, <b>{{ name }}</b>.</p>",
        },
        expects={"it is there": "pm.expect(answer.subject).to.equal('Order {{ order }}');"},
    ),
    PostmanRequest(
        name="Look at it",
        route="GET /v1/templates/<name>",
        path_values=_TEMPLATE,
        description="With its texts.",
        expects={"as it was saved": "pm.expect(answer.html).to.include('{{ name }}');"},
    ),
    PostmanRequest(
        name="See what a mail would say",
        route="POST /v1/templates/<name>/preview",
        path_values=_TEMPLATE,
        description="Nothing is sent.",
        body={"variables": {"order": 42, "name": "Bob & Carol"}},
        expects={
            "filled in, and safe": """
pm.expect(answer.subject).to.equal('Order 42');
pm.expect(answer.html).to.include('Bob &amp; Carol').and.to.include('color: green');
pm.expect(answer.text).to.include('Thank you, Bob & Carol.');
"""
        },
    ),
    PostmanRequest(
        name="Send it",
        route="POST /v1/messages",
        status=202,
        set_before={"recipient": FRESH_ADDRESS},
        description="`template` instead of a text.",
        body={
            "to": "{{recipient}}",
            "template": {"name": "postman-receipt", "variables": {"order": 42, "name": "Bob"}},
        },
    ),
    PostmanRequest(
        name="Read the mail of the template",
        route="GET /inbox/api/messages",
        query={"to": "{{recipient}}", "wait": "30"},
        description="As Bob sees it.",
        expects={"it is filled in": "pm.expect(answer.data[0].subject).to.equal('Order 42');"},
    ),
    PostmanRequest(
        name="A variable is missing",
        route="POST /v1/templates/<name>/preview",
        path_values=_TEMPLATE,
        status=422,
        body={"variables": {"order": 42}},
        description="No mail goes with a hole in it.",
        expects={"it says which": "pm.expect(answer.detail).to.include('name');"},
    ),
    PostmanRequest(
        name="All templates",
        route="GET /v1/templates",
        description="By name, a page at a time.",
        expects={
            "it is among them": "pm.expect(answer.data.map(one => one.name)).to.include('postman-receipt');"
        },
    ),
    PostmanRequest(
        name="Delete it",
        route="DELETE /v1/templates/<name>",
        path_values=_TEMPLATE,
        status=204,
        description="Mails that were accepted stay as they are.",
    ),
)

SUPPRESSIONS = (
    PostmanRequest(
        name="Send somebody nothing any more",
        route="POST /v1/suppressions",
        status=201,
        set_before={"recipient": FRESH_ADDRESS},
        body={"address": "{{recipient}}", "detail": "asked by phone"},
        description="One `address`, or many `addresses`.",
        expects={
            "it is noted": """
pm.expect(answer.address).to.equal(pm.collectionVariables.get('recipient'));
pm.expect(answer.reason).to.equal('manual');
"""
        },
    ),
    PostmanRequest(
        name="A mail to somebody who wants none",
        route="POST /v1/messages",
        status=202,
        body={"to": "{{recipient}}", "subject": "News"},
        description="It is accepted, and not sent.",
        set_after={"id": "answer.id"},
    ),
    PostmanRequest(
        name="What became of it",
        route="GET /v1/messages/<id>",
        description="Where somebody else gets it too, that one does.",
        expects={"it is suppressed": "pm.expect(answer.status).to.equal('suppressed');"},
    ),
    PostmanRequest(
        name="Why does Bob get no mail?",
        route="GET /v1/suppressions/<path:address>",
        path_values={"address": "{{recipient}}"},
        description="Since when, and why.",
        expects={"the reason": "pm.expect(answer.detail).to.equal('asked by phone');"},
    ),
    PostmanRequest(
        name="Who gets no mail?",
        route="GET /v1/suppressions",
        query={"reason": "manual", "limit": "5"},
        description="The newest first.",
        expects={
            "Bob is among them": """
pm.expect(answer.data.map(one => one.address)).to.include(pm.collectionVariables.get('recipient'));
"""
        },
    ),
    PostmanRequest(
        name="Let him get mail again",
        route="DELETE /v1/suppressions/<path:address>",
        path_values={"address": "{{recipient}}"},
        status=204,
        description="What was suppressed meanwhile is not sent by that.",
    ),
    PostmanRequest(
        name="He is not suppressed",
        route="GET /v1/suppressions/<path:address>",
        path_values={"address": "{{recipient}}"},
        status=404,
        description="The same question again.",
    ),
)

WEBHOOKS = (
    PostmanRequest(
        name="Tell my service what happens",
        route="POST /v1/webhooks",
        status=201,
        description="Put your own https URL into `url`; this one leads nowhere.",
        body={"url": "https://hooks.invalid/mail", "events": ["message.sent", "message.failed"]},
        expects={
            "the secret is shown": """
pm.expect(answer.secret).to.match(/^whsec_/);
pm.expect(answer.enabled).to.equal(true);
"""
        },
        set_after={"webhookId": "answer.id"},
    ),
    PostmanRequest(
        name="All webhooks",
        route="GET /v1/webhooks",
        description="Without their secrets.",
        expects={
            "it is among them": """
const ours = answer.data.find(one => one.id === pm.collectionVariables.get('webhookId'));
pm.expect(ours.events).to.eql(['message.sent', 'message.failed']);
pm.expect(ours).to.not.have.property('secret');
"""
        },
    ),
    PostmanRequest(
        name="One webhook",
        route="GET /v1/webhooks/<id>",
        path_values=_WEBHOOK,
        description="To an admin with its secret.",
        expects={"its URL": "pm.expect(answer.url).to.equal('https://hooks.invalid/mail');"},
    ),
    PostmanRequest(
        name="Try it",
        route="POST /v1/webhooks/<id>/test",
        path_values=_WEBHOOK,
        status=202,
        description="Delivers a `webhook.test`.",
        expects={"on its way": "pm.expect(answer.type).to.equal('webhook.test');"},
        set_after={"number": "answer.number"},
    ),
    PostmanRequest(
        name="What was it told?",
        route="GET /v1/webhooks/<id>/deliveries",
        path_values=_WEBHOOK,
        description="The log, the newest first.",
        expects={
            "the test is there": """
pm.expect(answer.data[0].number).to.equal(pm.collectionVariables.get('number'));
"""
        },
    ),
    PostmanRequest(
        name="Tell it once more",
        route="POST /v1/webhooks/<id>/deliveries/<number>/replay",
        path_values=_WEBHOOK,
        status=(202, 409),
        description="Under the same id; 409 while a worker is at it.",
    ),
    PostmanRequest(
        name="Tell it nothing for now",
        route="PATCH /v1/webhooks/<id>",
        path_values=_WEBHOOK,
        body={"enabled": False},
        description="What is not there stays.",
        expects={"it is off": "pm.expect(answer.enabled).to.equal(false);"},
    ),
    PostmanRequest(
        name="Forget it",
        route="DELETE /v1/webhooks/<id>",
        path_values=_WEBHOOK,
        status=204,
        description="With its log.",
    ),
)
