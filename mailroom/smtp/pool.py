"""Keeps sessions with a next hop open from mail to mail, and as many as it takes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mailroom.model.account import NextHop
from mailroom.model.errors import ConnectionRefused, NotTaken, TooManyConnections
from mailroom.smtp.connection import words_of
from mailroom.smtp.poller import Dialogue
from mailroom.smtp.session import PipeliningDoubted, Receipt, Session, SessionLost, login_at, pipelining_with


class Sessions:
    """The sessions of one worker, at most as many as threads borrow at the same time; each is kept for the next mail."""

    def __init__(self, hop: NextHop) -> None:
        self.hop = hop
        self._login = login_at(hop)
        self._pipelining = pipelining_with(hop)
        self._idle: list[Session] = []
        self._worn: list[Session] = []
        self._counts = threading.Condition()
        self._standing = 0  #: sessions that are open: idle, worn or lent
        self._opening = 0
        self._opened = 0  #: in all

    def steps(
        self, *mail: Any, smtputf8: bool = False, open_only: bool = False, since: float | None = None
    ) -> Dialogue[Receipt]:
        """Make an attempt as `Session.attempt` does, on a kept session.

        Where the server has closed that meanwhile, it is made at once on a new one.
        Where commands in one write may have been lost or garbled, they are said one by one on a new one.

        `open_only`: nothing here waits but by steps. Where a session would have to be opened, SessionLost is raised and nobody has the
        mail; one that is worn then is closed before the next is opened. `since`: as for `Session.open`.
        """
        if open_only:
            session = self._reuse()
            if session is None:
                raise SessionLost("no session is open", of_message=False)
            with self._lent(session, worn=self._worn):
                return (yield from session.attempt(*mail, smtputf8=smtputf8))
        fresh = step_by_step = False
        while True:
            try:
                with self.borrow(fresh=fresh, since=since) as found:
                    receipt = yield from found.attempt(*mail, smtputf8=smtputf8, step_by_step=step_by_step)
                    break
            except SessionLost as e:  # A new session raises none, but for the doubt of its first try.
                fresh, step_by_step = True, step_by_step or isinstance(e, PipeliningDoubted)
        if step_by_step and receipt.final is not None and receipt.final.accepts:
            self._pipelining.give_up(receipt.refused.values())
        return receipt

    @contextmanager
    def borrow(self, *, fresh: bool = False, since: float | None = None) -> Iterator[Session]:
        """Lend an open session; it comes back by itself.

        Raises:
          TooManyConnections: others are open, and the server takes no further one.
          NotTaken: none can be opened.
        """
        with self._lent((None if fresh else self._reuse()) or self._new(since)) as session:
            yield session

    @contextmanager
    def _lent(self, session: Session, *, worn: list[Session] | None = None) -> Iterator[Session]:
        opened = self._opened
        try:
            yield session
        except ConnectionRefused as e:  # It says so as late as at MAIL.
            self._drop(session)
            self._check_others(e, opened)
            raise
        except BaseException:
            self._drop(session)  # Nobody knows what was left half said.
            raise
        if not session.worn:
            session.kept = True
            self._idle.append(session)
        elif worn is None or session.smtp.sock is None:
            self._close(session)
        else:
            worn.append(session)

    def close(self) -> None:
        for sessions in (self._idle, self._worn):
            while sessions:
                self._close(sessions.pop())

    def _reuse(self) -> Session | None:
        while True:
            try:
                session = self._idle.pop()  # The last one in: the others may grow old and be closed.
            except IndexError:
                return None
            if session.reusable:
                return session
            self._drop(session)

    def _new(self, since: float | None) -> Session:
        with suppress(IndexError):
            self._close(self._worn.pop())  # So that there are never more at a time than threads borrow.
        with self._counts:
            self._opening += 1
            opened = self._opened
        is_open = False
        try:
            session = Session(self.hop, login=self._login, pipelining=self._pipelining)
            session.open(since=since)
            is_open = True
            return session
        except ConnectionRefused as e:
            refusal = e
        except OSError as e:
            raise NotTaken(
                f"{self.hop.ca_file} is no file of certificates: {words_of(e)}", of_message=False
            ) from e
        finally:
            self._count(opening=-1, opened=int(is_open))
        self._check_others(refusal, opened)
        raise refusal

    def _check_others(self, refusal: ConnectionRefused, opened: int) -> None:
        """Raise TooManyConnections if the server has others; `opened`: how many it had taken before this one."""
        with self._counts:
            self._counts.wait_for(lambda: self._standing or self._opened > opened or not self._opening)
            if self._standing or self._opened > opened:
                found = self._standing
                raise TooManyConnections(refusal.reply, code=refusal.code, standing=found) from refusal

    def _drop(self, session: Session) -> None:
        session.drop()
        self._count(ended=1)

    def _close(self, session: Session) -> None:
        session.close()
        self._count(ended=1)

    def _count(self, *, opening: int = 0, opened: int = 0, ended: int = 0) -> None:
        with self._counts:
            self._opening += opening
            self._opened += opened
            self._standing += opened - ended
            self._counts.notify_all()
