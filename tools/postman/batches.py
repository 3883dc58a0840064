"""Requests of the collection about many messages at once."""

from tools.postman.request import PostmanRequest

MANY = (
    PostmanRequest(
        name="Send many in one request",
        route="POST /v1/messages/batch",
        status=202,
        set_before={"tag": "'run-' + Date.now()"},
        description="Up to 1,000 in one commit, or none of them; `common` is what they share.",
        body={
            "common": {"subject": "News", "text": "All is well.", "tags": ["{{tag}}"]},
            "messages": [
                {"to": "bob@example.org"},
                {"to": "carol@example.org", "subject": "News for Carol"},
            ],
        },
        expects={
            "all are accepted": """
pm.expect(answer.data).to.have.lengthOf(2);
answer.data.forEach(one => pm.expect(one.status).to.equal('queued'));
"""
        },
    ),
    PostmanRequest(
        name="Find them",
        route="GET /v1/messages",
        query={"tag": "{{tag}}", "limit": "1"},
        description="By tag, state, recipient and time.",
        expects={
            "the newest, and there is another": """
pm.expect(answer.data[0].subject).to.equal('News for Carol');
pm.expect(answer.has_more).to.equal(true);
"""
        },
        set_after={"next": "answer.next"},
    ),
    PostmanRequest(
        name="The next page",
        route="GET /v1/messages",
        query={"tag": "{{tag}}", "after": "{{next}}"},
        description="`next` is `after` of it.",
        expects={
            "the other one": """
pm.expect(answer.data.map(one => one.subject)).to.eql(['News']);
pm.expect(answer.next).to.equal(null);
"""
        },
    ),
    PostmanRequest(
        name="What was sent to Bob",
        route="GET /v1/messages",
        query={"to": "bob@example.org", "status": "sent"},
        description="Two filters.",
        expects={
            "only such": """
answer.data.forEach(one => pm.expect(one.status).to.equal('sent'));
"""
        },
    ),
    PostmanRequest(
        name="Many, one of which is wrong",
        route="POST /v1/messages/batch",
        status=422,
        body=[{"to": "bob@example.org"}, {"to": "nobody"}],
        description="None is accepted, and the answer says which one it is.",
        expects={
            "its place in the list": """
pm.expect(answer.errors.map(one => one.pointer)).to.eql(['#/1/to']);
"""
        },
    ),
)
