"""The service: the way of a mail through its files, and the words used for it.

The way of a mail:

    server/                    reads requests; incomplete ones are dropped here
    app.py                     the route of POST /: commits the mail and calls sendMail.delay(id)
    smtpd/                     takes mail from programs that speak SMTP, and commits it likewise
    api/routes/messages.py     the other routes that accept mail; api/auth/guard.py checks the API key, and
                               api/problems.py answers what is wrong
    submission/reader.py       turns the JSON into a model/message.py Message, and perhaps a job;
                               submission/message.py checks the fields, and templating/stored.py fills in a
                               stored template
    store/messages/outbox.py   accept: writes the mail to the database; store/db/database.py puts many
                               requests into one commit. Only then the client gets its 200
    broker/publisher.py        publishes the id to RabbitMQ, in a thread of its own
    mailasync.py               the tasks of a Celery worker; sendMail gets the ids there
    worker/worker.py           the parts of a worker
    delivery/delivery.py       deliver: a single mail runs in the calling thread, several run side by side in
                               the thread of delivery/loop.py; delivery/attempt.py makes one attempt, and
                               delivery/outcomes.py judges its replies. If a mail waits for a job, its row
                               cannot be claimed yet, and jobs/runner.py is woken
    jobs/runner.py             runs that job in a thread or a child process; the end of the job, in
                               store/jobs/claims.py, queues the mail, and its id is published again
    store/messages/claims.py   claim: the rows belong to this worker
    smtp/mime.py               composes the message (RFC 5322); templating/job.py fills in how the job ended
    smtp/session.py            MAIL, RCPT and DATA over a yagmail session; smtp/pool.py keeps sessions open,
                               smtp/poller.py waits for the replies of all of them in one thread
    store/messages/claims.py   fence: just before the payload, checks that the rows are still this worker's
    store/messages/outcomes.py finish: stores the result of each recipient, with the server's reply
    store/events/timeline.py   adds to the timeline, to the webhooks and to the counters of /metrics
    webhooks/notifier.py       notifies clients; webhooks/ssrf.py keeps it away from our own network

Beside it:

    worker/sweeper.py          in every worker: publishes what is due, what was never published, and what a
                               dead worker left behind
    process/supervisor.py      restarts a thread that has ended, and reports it at /readyz
    mailbox/reader.py          in one worker for each account: reads its mailbox over IMAP. mailbox/inbox.py
                               takes bounces, delays and complaints from the inbox, mailbox/bounces.py reads
                               one, and store/messages/bounces.py applies it; mailbox/sent_folder.py looks for
                               mails without a reply, and store/messages/lookups.py settles them
    config/accounts.py         the sender accounts: where mail goes, and who it is from
    config/logs.py             the format of the log, and what is never in it
    server/up.py               `flask up`: web, worker, database and inbox in one process
    cli/                       the commands

The words:

    outbox      the database. Its rows are the truth about every mail; everything else may be lost, and is
                made again from them.
    nudge       a message on a queue: "look at these ids". It may be lost, repeated or late without harm.
    claim       to become the owner of queued rows; a row has one owner at a time.
    fence       the last check before the payload: is the row still mine, and is my lease still valid? It is
                committed before the first byte of the payload is sent.
    next hop    the SMTP server that we hand mail to. Its 250 after the final dot is what `sent` means.
    uncertain   the payload was sent and no reply came: nobody knows whether the next hop has the mail.
    look        a search for an uncertain mail in the Sent folder of its account, before it is sent again.
    lease       how long a worker may miss its heartbeat before its rows are given to others.
    sweeper     the thread of a worker that brings back what was lost or left behind.
    job         work that runs before its mail is sent, in a thread or a child process.
"""

__version__ = "0.1.0"
