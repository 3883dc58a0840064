"""Serves the application over HTTP by granian, so that what strangers leave half done holds up nobody else.

application.py  the Flask application: its hooks, and the routes that are not in app.py
serve.py        `python3 app.py` and `flask inbox`
up.py           `flask up`: web, worker, database and inbox in one process
process.py      how a process that serves begins and ends; embedded_worker.py: a Celery worker in it
http_server.py  granian with its RSGI worker, each request in a thread of its pool: granian's own WSGI
                tells no port of the peer, and has no way to give up a body
gateway.py      one request as WSGI: its environment, its answer
body.py         what comes after the headers: short bodies are collected without a thread, long ones read
                in few, all with a deadline
connections.py  those that are open, and which are closed when they become scarce
watch.py        the thread that looks every second for what is late
limits.py       the numbers
"""
