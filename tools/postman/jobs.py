"""Requests of the collection about jobs."""

from tools.postman.request import FRESH_ADDRESS, PostmanRequest

JOBS = (
    PostmanRequest(
        name="What can be run?",
        route="GET /v1/job-types",
        description="The job types, with their arguments as JSON Schema. Your own come by `JOBS`.",
        expects={
            "simulate is there, with what it takes": """
const type = answer.data.find(one => one.name === 'simulate');
pm.expect(type.arguments.required).to.eql(['seconds']);
pm.expect(type.queue).to.equal('jobs');
"""
        },
    ),
    PostmanRequest(
        name="Run a job, and mail me when it is done",
        route="POST /v1/jobs",
        status=202,
        set_before={"recipient": FRESH_ADDRESS},
        description=(
            "Answers 202 at once; the mail goes when the job has ended. A new address for every run, "
            "as above."
        ),
        body={
            "name": "simulate",
            "args": {"seconds": 2},
            "notify": {
                "to": "{{recipient}}",
                "subject": "{{ job.name }}: {{ job.status }}",
                "contents": "It took {{ job.seconds }} seconds.",
            },
        },
        expects={
            "accepted at once": "pm.expect(pm.response.responseTime).to.be.below(2000);",
            "it has not ended, and its mail waits": """
pm.expect(answer.status).to.be.oneOf(['queued', 'running']);
pm.expect(answer.message.status).to.equal('waiting');
pm.expect(pm.response.headers.get('Location')).to.equal('/v1/jobs/' + answer.id);
""",
        },
        set_after={"jobId": "answer.id", "id": "answer.message.id"},
    ),
    PostmanRequest(
        name="How far is my job?",
        route="GET /v1/jobs/<id>",
        path_values={"id": "{{jobId}}"},
        description=(
            "The job that the request before this one started. Send it again and see `progress` grow."
        ),
        expects={
            "it tells status, progress, why and timeline": """
pm.expect(answer.id).to.equal(pm.collectionVariables.get('jobId'));
pm.expect(answer.status).to.be.oneOf(['queued', 'running']);
pm.expect(answer.progress).to.be.within(0, 1);
pm.expect(answer.why).to.be.a('string').and.not.be.empty;
pm.expect(answer.args).to.eql({seconds: 2});
pm.expect(answer.timeline[0].event).to.equal('accepted');
"""
        },
    ),
    PostmanRequest(
        name="Wait until it has ended",
        route="GET /v1/jobs/<id>",
        path_values={"id": "{{jobId}}"},
        headers={"Prefer": "wait=30"},
        description="`Prefer: wait=30` answers as soon as the job has ended, after 30 seconds at most.",
        expects={
            "it succeeded": """
pm.expect(pm.response.headers.get('Preference-Applied')).to.equal('wait=30');
pm.expect(answer.status).to.equal('succeeded');
pm.expect(answer.progress).to.equal(1);
pm.expect(answer.error).to.equal(null);
const events = answer.timeline.map(one => one.event);
pm.expect(events).to.include.members(['accepted', 'job started', 'job succeeded']);
"""
        },
    ),
    PostmanRequest(
        name="Read the mail of the job",
        route="GET /inbox/api/messages",
        query={"to": "{{recipient}}", "wait": "30"},
        description="What stood between the braces is filled in.",
        expects={
            "the mail came, once, and tells of the job": """
const mails = answer.data;
pm.expect(mails).to.have.lengthOf(1);
pm.expect(mails[0].message_id).to.include(pm.collectionVariables.get('id'));
pm.expect(mails[0].subject).to.equal('simulate: succeeded');
pm.expect(mails[0].text).to.match(/^It took 2\\.\\d+ seconds\\.\\s*$/);
"""
        },
    ),
    PostmanRequest(
        name="The file that a job made",
        route="GET /v1/jobs/<id>/file",
        path_values={"id": "{{jobId}}"},
        status=404,
        description="This one made none; `thumbnail` makes one.",
        expects={
            "it says so": """
pm.expect(answer.detail).to.include('a job that made a file');
"""
        },
    ),
    PostmanRequest(
        name="Run it once more",
        route="POST /v1/jobs/<id>/retry",
        path_values={"id": "{{jobId}}"},
        status=202,
        description="A new job with the same arguments, and a mail of its own.",
        expects={
            "a new job": """
pm.expect(answer.retry_of).to.equal(pm.collectionVariables.get('jobId'));
pm.expect(answer.id).to.not.equal(answer.retry_of);
pm.expect(answer.message.status).to.equal('waiting');
pm.expect(pm.response.headers.get('Location')).to.equal('/v1/jobs/' + answer.id);
"""
        },
        set_after={"jobId": "answer.id"},
    ),
    PostmanRequest(
        name="Cancel it",
        route="POST /v1/jobs/<id>/cancel",
        path_values={"id": "{{jobId}}"},
        description="Takes the job of the request before this one back, and its mail with it.",
        expects={
            "it is canceled, and so is its mail": """
pm.expect(answer.status).to.equal('canceled');
pm.expect(answer.message.status).to.equal('canceled');
"""
        },
    ),
    PostmanRequest(
        name="A job that has ended is not canceled",
        route="POST /v1/jobs/<id>/cancel",
        path_values={"id": "{{jobId}}"},
        status=409,
        description="The same request again.",
        expects={
            "it names the state": """
pm.expect(answer.detail).to.include('canceled');
"""
        },
    ),
    PostmanRequest(
        name="The latest jobs",
        route="GET /v1/jobs",
        query={"name": "simulate", "limit": "2"},
        description="The newest first; `next` is `after` of the next page.",
        expects={
            "the canceled one, and the one before it": """
pm.expect(answer.data).to.have.lengthOf(2);
pm.expect(answer.data[0].id).to.equal(pm.collectionVariables.get('jobId'));
pm.expect(answer.data[1].id).to.equal(answer.data[0].retry_of);
pm.expect(answer.has_more).to.be.a('boolean');
"""
        },
    ),
    PostmanRequest(
        name="A job that cannot be run",
        route="POST /v1/jobs",
        status=422,
        body={"name": "simulate", "args": {"seconds": "long", "minutes": 1}},
        description="Two mistakes: no number, and an argument that simulate has not.",
        expects={
            "it says which arguments and why": """
pm.expect(answer.errors.map(e => e.pointer)).to.have.members(['#/args/seconds', '#/args/minutes']);
answer.errors.forEach(e => pm.expect(e.detail).to.include('expected'));
"""
        },
    ),
)
