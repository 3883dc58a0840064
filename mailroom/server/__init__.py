"""Serves the application over HTTP by granian, so that what strangers leave half done holds nothing that others need.

http_server.py  granian with its RSGI worker, each request in a thread of its pool: granian's own WSGI
                tells no port of the peer, and has no way to give up a body
gateway.py      one request as WSGI: its environment, its answer
body.py         what comes after the headers: short bodies are collected without a thread, long ones read
                in few, all with a deadline
connections.py  those that are open, and which are closed when they become scarce
watch.py        the thread that looks every second for what is late
limits.py       the numbers
"""
