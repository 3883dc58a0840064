"""The service: the road of a mail, and the words used for it.

The road, each step with its file:

    serving/            what came over HTTP is a request, once its headers and a short body are there; strangers' half requests end here
    api/messages.py     bytes of a POST -> order.py -> mail/message.py Message, store/jobs.py NewJob; problems.py says what is wrong;
                        guard.py and permission.py, what the API key may; peer.py, who is served without one. mail/letter.py
                        fills in a stored template
    store/outbox.py     accept: rows on disk, by store/database.py many requests in one commit; only then 200
    jobs/runner.py      where work comes first: a job in a thread or a child process; store/runs.py: its end lets the mail go
    relay.py            the id goes to RabbitMQ, from an own thread; what it cannot publish, the sweeper publishes later
    mailasync.py        a worker's sendMail gets ids, and station.py, what a worker is made of, calls mail/delivery.py deliver, which
                        runs all attempts side by side; mail/agent.py: what one is, and how its replies are judged
    store/claims.py     claim: the rows are this worker's
    mail/compose.py     RFC 5322 bytes; mail/template.py fills in how the job ended
    mail/transport.py   MAIL, RCPT, DATA over a yagmail session; mail/envelope.py keeps each reply,
                        mail/pipelining.py remembers who takes commands in one write, mail/groups.py asks for fewer
                        recipients at a time where a server hung up over all; mail/login.py logs in, mail/link.py reads what
                        the server says, mail/steps.py waits for it, in one thread for all mails;
                        mail/sessions.py keeps sessions open from mail to mail
    store/claims.py     fence: before the payload, whether it is still ours
    store/claims.py     finish: per recipient, with the server's words
    store/events.py     record: the timeline's line, and with it store/deliveries.py for webhooks, and store/tallies.py for /metrics
    webhook.py          tells clients, in threads of its own; address_guard.py keeps it away from our own network;
                        http_answer.py reads what they say
    route.py            where mail goes and who it is from, as the settings say
    sweeper.py          in every worker: what is due, what was never published, what a dead worker left behind
    supervisor.py       keeps the threads of a process running: one that ends is started anew, and /readyz tells of it
    logs.py             what the log looks like, and what is never in it; log_file.py, terminal.py: no line of it stops the mail
    embedded.py         a Celery worker in a thread of the process that serves: `flask up`

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
