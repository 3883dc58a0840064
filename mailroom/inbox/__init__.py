"""A disposable inbox for development: it accepts any mail over SMTP, relays none, and shows them all.

    storage, chaos = InboxStorage(), Chaos()
    inbox = Inbox(port=1025, storage=storage, chaos=chaos)  # smtp.py: receives mail
    inbox.start()
    app.register_blueprint(create_blueprint(storage, chaos))  # pages.py and api.py: people and tests read it
    inbox.stop()

Mails are kept in memory (storage.py) and parsed only when somebody opens one (parser.py). Tests can make
the next mails fail (chaos.py). The only import from the rest of this project is the supervisor that keeps
the inbox's thread running, so that the folder can be copied and used elsewhere.
"""

from mailroom.inbox.chaos import Chaos, Failure
from mailroom.inbox.pages import STREAMS_MAX as _STREAMS_MAX
from mailroom.inbox.pages import AppHooks, create_blueprint
from mailroom.inbox.smtp import Inbox, PortTaken
from mailroom.inbox.storage import WAITERS_MAX as _READERS_MAX
from mailroom.inbox.storage import InboxStorage, ReceivedMail

#: The most requests that wait for mail at the same time; each occupies a thread of the web server.
WAITERS_MAX = _READERS_MAX + _STREAMS_MAX

__all__ = [
    "WAITERS_MAX",
    "AppHooks",
    "Chaos",
    "Failure",
    "Inbox",
    "InboxStorage",
    "PortTaken",
    "ReceivedMail",
    "create_blueprint",
]
