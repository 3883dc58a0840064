"""Takes mail over SMTP (RFC 6409) from programs that speak nothing else, and puts it into the outbox.

server.py      listens, in a supervised thread with an event loop of its own
connection.py  one client: its commands, its limits, and the payload
auth.py        the API key as a password; without one only this machine is served
raw_message.py reads the mail, commits it, and words the reply
"""
