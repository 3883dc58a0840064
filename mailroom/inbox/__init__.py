"""A disposable inbox for development: takes any mail by SMTP, relays none, shows all.

    letters, dial = Letters(), Chaos()
    inbox = Inbox(port=1025, letters=letters, dial=dial)  # smtp.py: mail comes in
    inbox.start()
    app.register_blueprint(create_blueprint(letters, dial))  # pages.py: a person or a test looks
    inbox.stop()

It keeps what it took in memory (storage.py), takes it apart when somebody looks (parser.py), makes
mails fail that are to (chaos.py), and imports nothing else of this project but what keeps its thread running.
"""

from mailroom.inbox.chaos import Chaos, Failure
from mailroom.inbox.pages import STREAMS_MAX as _STREAMS_MAX
from mailroom.inbox.pages import Around, create_blueprint
from mailroom.inbox.smtp import Inbox, PortTaken
from mailroom.inbox.storage import WAITERS_MAX as _READERS_MAX
from mailroom.inbox.storage import Letters, ReceivedMail

#: Requests that wait at the same time, each in a thread of the server.
WAITERS_MAX = _READERS_MAX + _STREAMS_MAX

__all__ = [
    "WAITERS_MAX",
    "Around",
    "Chaos",
    "Failure",
    "Inbox",
    "Letters",
    "PortTaken",
    "ReceivedMail",
    "create_blueprint",
]
