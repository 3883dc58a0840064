"""A disposable inbox for development: takes any mail by SMTP, relays none, shows all.

    letters = Letters()
    inbox = Inbox(port=1025, letters=letters)       # smtp.py: mail comes in
    inbox.start()
    app.register_blueprint(create_blueprint(letters))  # pages.py: a person or a test looks at it
    inbox.stop()

It keeps what it took in memory (letters.py), takes it apart when somebody looks (contents.py), and
imports nothing else of this project.
"""

from mailroom.inbox.letters import Letter, Letters
from mailroom.inbox.pages import create_blueprint
from mailroom.inbox.smtp import Inbox, PortTaken

__all__ = ["Inbox", "Letter", "Letters", "PortTaken", "create_blueprint"]
