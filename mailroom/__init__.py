"""The service: the road of a mail, and the words used for it.

The road, each step with its file:

    server/                    what came over HTTP is a request, once its headers and a short body are there;
                               strangers' half requests end here
    app.py                     the route of POST /, which commits the mail and calls sendMail.delay(id)
    api/routes/messages.py     bytes of a POST -> submission/reader.py -> model/message.py Message,
                               store/jobs/jobs.py NewJob; api/problems.py says what is wrong;
                               api/auth/guard.py and api/auth/senders.py, what the API key may;
                               api/auth/peer.py, who is served without one. templating/stored.py fills in a
                               stored template
    store/messages/outbox.py   accept: rows on disk, by store/db/database.py many requests in one commit; only
                               then 200
    jobs/runner.py             where work comes first: a job in a thread or a child process;
                               store/jobs/claims.py: its end lets the mail go
    broker/publisher.py        the id goes to RabbitMQ, from an own thread; what it cannot publish, the
                               sweeper publishes later
    mailasync.py               a worker's sendMail gets ids: it wakes the jobs that mails wait for; and
                               worker/worker.py, what a worker is made of, calls delivery/delivery.py deliver,
                               which runs all attempts side by side;
                               delivery/attempt.py makes one, and delivery/outcomes.py judges its replies
    store/messages/claims.py   claim: the rows are this worker's
    smtp/mime.py               RFC 5322 bytes; templating/job.py fills in how the job ended
    smtp/session.py            MAIL, RCPT, DATA over a yagmail session; smtp/envelope.py keeps each reply,
                               smtp/pipelining.py remembers who takes commands in one write,
                               delivery/groups.py asks for fewer recipients at a time where a server hung up
                               over all; smtp/login.py logs in, smtp/connection.py reads what the server says,
                               smtp/poller.py waits for it, in one thread for all mails; smtp/pool.py keeps
                               sessions open from mail to mail
    store/messages/claims.py   fence: before the payload, whether it is still ours
    store/messages/outcomes.py finish: per recipient, with the server's words
    store/events/timeline.py   record: the timeline's line, and with it store/events/deliveries.py for
                               webhooks, and store/events/counters.py for /metrics
    webhooks/notifier.py       tells clients, in threads of its own; webhooks/ssrf.py keeps it away from our
                               own network; webhooks/http.py reads what they say
    config/accounts.py         where mail goes and who it is from, as the settings say
    worker/sweeper.py          in every worker: what is due, what was never published, what a dead worker left
                               behind
    process/supervisor.py      keeps the threads of a process running: one that ends is started anew, and
                               /readyz tells of it
    config/logs.py             what the log looks like, and what is never in it; process/log_file.py,
                               process/terminal.py: no line of it stops the mail
    server/embedded_worker.py  a Celery worker in a thread of the process that serves: `flask up`

The words:

    outbox      the database. Its rows are the truth about every mail; all else may be lost and is made again from them.
    nudge       a message on a queue: "look at these ids". It may be lost, doubled or late without harm.
    claim       to become the owner of queued rows; a row has one owner at a time.
    fence       the last look before the payload: still mine, am I still alive? Committed before the first byte of it.
    next hop    the SMTP server that we hand mail to. Its 250 after the final dot is what `sent` means.
    uncertain   the payload went out and no reply came: nobody knows whether the next hop has the mail.
    lease       how long a worker may be unseen until its rows are given to others.
    job         work that runs before its mail goes, in a thread or a child process, never where mail is sent.
"""

__version__ = "0.1.0"
