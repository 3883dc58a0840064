"""Requests of the collection about single messages."""

from tools.postman.request import FRESH_ADDRESS, PostmanRequest

_ACCEPTED = """
pm.expect(answer.status).to.equal('queued');
pm.expect(pm.response.headers.get('Location')).to.equal('/v1/messages/' + answer.id);
"""

_WHOLE_MAIL = """From: Alice <alice@example.org>
To: Bob <bob@example.org>
Subject: Hello
X-Mailasync-Tag: postman

It goes out as it is.
"""

START = (
    PostmanRequest(
        name="Send a mail, as the tutorial does",
        route="POST /",
        description=(
            "Answers at once; a worker does the simulated heavy work and then sends the mail. Put "
            "your own address, or one from temp-mail.org, into `to`."
        ),
        body={"to": "you@example.org", "subject": "Hello", "contents": "The work is done."},
        expects={
            "accepted at once": "pm.expect(pm.response.responseTime).to.be.below(2000);",
            "it has an id and waits for its work": """
pm.expect(answer.id).to.match(/^[0-9a-f-]{36}$/);
pm.expect(answer.status).to.be.oneOf(['waiting', 'queued']); // queued where SIMULATED_WORK_SECONDS is 0
pm.expect(pm.response.headers.get('Location')).to.equal('/v1/messages/' + answer.id);
""",
        },
    ),
    PostmanRequest(
        name="Send a mail without simulated work",
        route="POST /v1/messages",
        status=202,
        set_before={"recipient": FRESH_ADDRESS},
        description=(
            "Answers 202 and sends at once. A new address for every run, so that `Wait for the mail "
            "in the inbox` finds this very mail; write your own into `to` if you like."
        ),
        body={
            "to": "{{recipient}}",
            "subject": "Hello from Postman",
            "contents": "<p>The work is <b>done</b>.</p>",
        },
        expects={"it is queued, and Location says where to look": _ACCEPTED},
        set_after={"id": "answer.id"},
    ),
    PostmanRequest(
        name="Where is my mail?",
        route="GET /v1/messages/<id>",
        description="The message that the request before this one made.",
        expects={
            "it tells status, why and timeline": """
pm.expect(answer.id).to.equal(pm.collectionVariables.get('id'));
pm.expect(answer.status).to.be.oneOf(['queued', 'sending', 'in_data', 'deferred', 'sent']);
pm.expect(answer.why).to.be.a('string').and.not.be.empty;
pm.expect(answer.recipients[0].email).to.equal(pm.collectionVariables.get('recipient'));
pm.expect(answer.timeline[0].event).to.equal('accepted');
"""
        },
    ),
    PostmanRequest(
        name="Wait until it is sent",
        route="GET /v1/messages/<id>",
        headers={"Prefer": "wait=30"},
        description="`Prefer: wait=30` answers as soon as it has ended, after 30 seconds at most.",
        expects={
            "it is sent": """
pm.expect(pm.response.headers.get('Preference-Applied')).to.equal('wait=30');
pm.expect(answer.status).to.equal('sent');
pm.expect(answer.recipients[0].status).to.equal('sent');
"""
        },
    ),
    PostmanRequest(
        name="Wait for the mail in the inbox",
        route="GET /inbox/api/messages",
        query={"to": "{{recipient}}", "wait": "30"},
        description=(
            "Answers as soon as the mail of the second request is in the disposable inbox, after 30 "
            "seconds at most. With `flask inbox` set `inboxUrl` to http://127.0.0.1:8025."
        ),
        expects={
            "the mail came, once": """
const mails = answer.data;
pm.expect(mails).to.have.lengthOf(1);
pm.expect(mails[0].message_id).to.include(pm.collectionVariables.get('id'));
pm.expect(mails[0].subject).to.equal('Hello from Postman');
pm.expect(mails[0].html).to.include('<b>done</b>');
pm.expect(mails[0].text).to.equal('The work is done.');
"""
        },
        set_after={"mailId": "answer.data[0].id"},
    ),
)

MESSAGES = (
    PostmanRequest(
        name="Send a mail with everything",
        route="POST /v1/messages",
        status=202,
        set_before={"recipient": FRESH_ADDRESS},
        description=(
            "Copies, a name, both forms, a file, a picture in the text, headers, tags, and how long to try."
        ),
        body={
            "to": {"email": "{{recipient}}", "name": "Bob Müller"},
            "cc": "carol@example.org",
            "bcc": ["dave@example.org"],
            "reply_to": "Desk <desk@example.org>",
            "subject": "Everything – 日本",
            "text": "The logo is in the other form.",
            "html": '<p>Look: <img src="cid:logo"></p>',
            "attachments": [
                {
                    "filename": "note.txt",
                    "content": "SGVsbG8sIHdvcmxkIQ==",
                    "content_type": "text/plain",
                },
                {
                    "filename": "logo.gif",
                    "content": "R0lGODlhAQABAAAAACwAAAAAAQABAAA=",
                    "content_type": "image/gif",
                    "content_id": "logo",
                },
            ],
            "headers": {"X-Order": "42"},
            "tags": ["postman"],
            "metadata": {"order": "42"},
            "priority": "low",
            "expires_in": 3600,
            "max_attempts": 3,
        },
        expects={"accepted": _ACCEPTED},
        set_after={"id": "answer.id"},
    ),
    PostmanRequest(
        name="Read what came",
        route="GET /inbox/api/messages",
        query={"to": "{{recipient}}", "wait": "30"},
        description="What a reader sees of it.",
        expects={
            "all is there, and nobody sees the blind copy": """
const mail = answer.data[0];
pm.expect(mail.subject).to.equal('Everything – 日本');
pm.expect(mail.headers['X-Order']).to.eql(['42']);
pm.expect(mail.attachments.map(one => one.filename)).to.have.members(['note.txt', 'logo.gif']);
pm.expect(JSON.stringify(mail.headers)).to.not.include('dave@example.org');
"""
        },
    ),
    PostmanRequest(
        name="What happened to it",
        route="GET /v1/messages/<id>/events",
        description="Its timeline.",
        expects={
            "it begins with its acceptance": """
pm.expect(answer.data[0].event).to.equal('accepted');
"""
        },
    ),
    PostmanRequest(
        name="The mail as it goes over the wire",
        route="GET /v1/messages/<id>/raw",
        description="For a reader of .eml files.",
        expects={
            "it is a mail": """
pm.expect(pm.response.headers.get('Content-Type')).to.include('message/rfc822');
pm.expect(pm.response.text()).to.include('X-Order: 42');
"""
        },
    ),
    PostmanRequest(
        name="Send files as a form",
        route="POST /v1/messages",
        status=202,
        form={"message": {"to": "bob@example.org", "subject": "Files"}},
        description=(
            "The field `message` is the JSON; files of the field `attachments` go with it, and those "
            "of any other name stand in the HTML as `cid:name`."
        ),
        expects={"accepted": _ACCEPTED},
    ),
    PostmanRequest(
        name="Send a mail that is written already",
        route="POST /v1/messages/raw",
        status=202,
        query={"to": "bob@example.org"},
        headers={"Content-Type": "message/rfc822"},
        description="A whole mail (RFC 5322), which goes out as it is; `to` is who gets it.",
        body=_WHOLE_MAIL,
        expects={"it is queued, and Location says where to look": _ACCEPTED},
    ),
    PostmanRequest(
        name="Only say what would be sent",
        route="POST /v1/messages",
        description="`dry_run` keeps nothing, and sends nothing.",
        body={"to": "bob@example.org", "html": "<h1>Hi</h1><p>Bye</p>", "dry_run": True},
        expects={
            "it shows both forms and the size": """
pm.expect(answer.dry_run).to.equal(true);
pm.expect(answer.text).to.include('Hi');
pm.expect(answer.html).to.include('<h1>Hi</h1>');
pm.expect(answer.size).to.be.above(100);
"""
        },
    ),
    PostmanRequest(
        name="Send it once only, whatever happens",
        route="POST /v1/messages",
        status=202,
        set_before={"idempotencyKey": "'order-' + Date.now()"},
        headers={"Idempotency-Key": "{{idempotencyKey}}"},
        body={"to": "bob@example.org", "subject": "Once"},
        description="A client that got no answer sends the same again, with the same key.",
        set_after={"id": "answer.id"},
    ),
    PostmanRequest(
        name="The same request again",
        route="POST /v1/messages",
        status=202,
        headers={"Idempotency-Key": "{{idempotencyKey}}"},
        body={"to": "bob@example.org", "subject": "Once"},
        description="It is answered as the first time, and nothing is sent.",
        expects={
            "the same message": """
pm.expect(pm.response.headers.get('Idempotency-Replayed')).to.equal('true');
pm.expect(answer.id).to.equal(pm.collectionVariables.get('id'));
"""
        },
    ),
    PostmanRequest(
        name="Another request with that key",
        route="POST /v1/messages",
        status=409,
        headers={"Idempotency-Key": "{{idempotencyKey}}"},
        body={"to": "bob@example.org", "subject": "Twice"},
        description="A new request needs a new key.",
        expects={
            "it says so": """
pm.expect(answer.code).to.equal('invalid_idempotent_request');
"""
        },
    ),
    PostmanRequest(
        name="Send it once more",
        route="POST /v1/messages/<id>/resend",
        status=202,
        description="What was sent goes again, as a new message.",
        set_before={},
        headers={"Prefer": "return=representation"},
        expects={
            "a new message": """
pm.expect(answer.resent_of).to.equal(pm.collectionVariables.get('id'));
"""
        },
    ),
    PostmanRequest(
        name="Send it in an hour",
        route="POST /v1/messages",
        status=202,
        description="`delay` in seconds, or `scheduled_at` with date and time.",
        body={"to": "bob@example.org", "subject": "Later", "delay": 3600},
        set_after={"id": "answer.id"},
        expects={
            "it is scheduled": """
pm.expect(answer.status).to.equal('scheduled');
"""
        },
    ),
    PostmanRequest(
        name="No, in two",
        route="POST /v1/messages/<id>/reschedule",
        body={"delay": 7200},
        description="`delay` or `at`.",
        expects={
            "it waits for its time": """
pm.expect(answer.status).to.equal('scheduled');
pm.expect(new Date(answer.next_attempt_at) - Date.now()).to.be.within(7100000, 7300000);
"""
        },
    ),
    PostmanRequest(
        name="Stop it",
        route="POST /v1/messages/<id>/hold",
        description="Until somebody releases it.",
        expects={
            "it is held": """
pm.expect(answer.status).to.equal('held');
"""
        },
    ),
    PostmanRequest(
        name="Let it go",
        route="POST /v1/messages/<id>/release",
        description="Whatever held it.",
        expects={
            "it is not held": """
pm.expect(answer.status).to.not.equal('held');
"""
        },
    ),
    PostmanRequest(
        name="Send another one tomorrow",
        route="POST /v1/messages",
        status=202,
        body={"to": "bob@example.org", "delay": 86400},
        description="To be taken back.",
        set_after={"id": "answer.id"},
    ),
    PostmanRequest(
        name="Take it back",
        route="POST /v1/messages/<id>/cancel",
        description="Before it is sent.",
        expects={
            "it is canceled": """
pm.expect(answer.status).to.equal('canceled');
"""
        },
    ),
    PostmanRequest(
        name="Take it back again",
        route="POST /v1/messages/<id>/cancel",
        status=409,
        description="It has ended.",
        expects={
            "it names the state": """
pm.expect(answer.detail).to.include('canceled');
"""
        },
    ),
    PostmanRequest(
        name="Send a third one tomorrow",
        route="POST /v1/messages",
        status=202,
        body={"to": "bob@example.org", "delay": 86400},
        description="To be tried at once.",
        set_after={"id": "answer.id"},
    ),
    PostmanRequest(
        name="Try it now",
        route="POST /v1/messages/<id>/retry",
        description="It does not wait for its time; one that failed gets a new round.",
        expects={
            "it is on its way": """
pm.expect(answer.status).to.be.oneOf(['queued', 'sending', 'in_data', 'sent']);
"""
        },
    ),
)
