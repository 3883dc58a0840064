"""Keeps sessions with a next hop open from mail to mail."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mailroom.mail.errors import NotTaken
from mailroom.mail.steps import Steps
from mailroom.mail.transport import NextHop, Receipt, Session, SessionLost, login_at, words_of


class Sessions:
    """The sessions of one worker, at most as many as threads borrow at the same time; each is kept for the next mail."""

    def __init__(self, hop: NextHop) -> None:
        self.hop = hop
        self._login = login_at(hop)
        self._idle: list[Session] = []
        self._worn: list[Session] = []

    def steps(self, *mail: Any, smtputf8: bool = False, open_only: bool = False,
              since: float | None = None) -> Steps[Receipt]:
        """As `Session.attempt`, on a kept session; where the server has closed that meanwhile, at once on a new one.

        `open_only`: nothing here waits but by steps. Where a session would have to be opened, SessionLost is raised and nobody has the
        mail; one that is worn then is closed before the next is opened. `since`: as for `Session.open`.
        """
        if open_only:
            session = self._reuse()
            if session is None:
                raise SessionLost("no session is open", of_message=False)
            with self._lent(session, worn=self._worn):
                return (yield from session.attempt(*mail, smtputf8=smtputf8))
        try:
            with self.borrow(since=since) as found:
                return (yield from found.attempt(*mail, smtputf8=smtputf8))
        except SessionLost:
            with self.borrow(fresh=True, since=since) as found:
                return (yield from found.attempt(*mail, smtputf8=smtputf8))

    @contextmanager
    def borrow(self, *, fresh: bool = False, since: float | None = None) -> Iterator[Session]:
        """Lend an open session; it comes back by itself. Raises NotTaken if none can be opened."""
        with self._lent((None if fresh else self._reuse()) or self._new(since)) as session:
            yield session

    @contextmanager
    def _lent(self, session: Session, *, worn: list[Session] | None = None) -> Iterator[Session]:
        try:
            yield session
        except BaseException:
            session.drop()  # Nobody knows what was left half said.
            raise
        if not session.worn:
            session.kept = True
            self._idle.append(session)
        elif worn is None:
            session.close()
        else:
            worn.append(session)

    def close(self) -> None:
        for sessions in (self._idle, self._worn):
            while sessions:
                sessions.pop().close()

    def _reuse(self) -> Session | None:
        while True:
            try:
                session = self._idle.pop()  # The last one in: the others may grow old and be closed.
            except IndexError:
                return None
            if session.reusable:
                return session
            session.drop()

    def _new(self, since: float | None) -> Session:
        with suppress(IndexError):
            self._worn.pop().close()  # So that there are never more at a time than threads borrow.
        try:
            session = Session(self.hop, login=self._login)
        except OSError as e:
            raise NotTaken(f"{self.hop.ca_file} is no file of certificates: {words_of(e)}", of_message=False) from e
        session.open(since=since)
        return session
