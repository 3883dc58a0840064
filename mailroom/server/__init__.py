"""Serves the application over HTTP with granian; half-sent requests of strangers hold up nobody else.

program.py      the program `mailasync`, which an installed wheel has
application.py  the Flask application: its hooks, and the routes that are not in app.py
serve.py        `python3 app.py` and `flask inbox`
up.py           `flask up`: web, worker, database and inbox in one process
submission.py   mail over SMTP, in the process that serves
process.py      how a process that serves begins and ends; embedded_worker.py: a Celery worker in it
http_server.py  granian with its RSGI worker, each request in a thread of its pool; granian's own WSGI
                gives no port of the peer, and cannot give up a body
gateway.py      one RSGI request as WSGI: its environment and its response
body.py         the body of a request: short ones are collected without a thread, long ones are read in a
                few threads, all with a deadline
connections.py  the open connections, and which of them are closed when there are too many
watch.py        the thread that looks every second for late bodies and too many connections
limits.py       the limits on bodies and connections
"""
