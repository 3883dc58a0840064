"""Keeps sessions with a next hop open from mail to mail, and learns how many connections it takes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mailroom.model.account import NextHop
from mailroom.model.errors import ConnectionRefused, NotTaken, TooManyConnections
from mailroom.smtp.connection import describe
from mailroom.smtp.poller import Dialogue
from mailroom.smtp.receipt import PipeliningDoubted, Receipt, SessionLost
from mailroom.smtp.session import Session, login_for, pipelining_for


class Sessions:
    """The sessions of one worker with one next hop; there are as many as are borrowed at the same time."""

    def __init__(self, hop: NextHop) -> None:
        self.hop = hop
        self._login = login_for(hop)
        self._pipelining = pipelining_for(hop)
        self._idle: list[Session] = []
        self._used_up: list[Session] = []  #: to be closed before the next one is opened
        self._counts = threading.Condition()
        self._open = 0  #: sessions that are idle, used up or borrowed
        self._opening = 0
        self._opened_ever = 0

    def attempt(
        self,
        *mail: Any,
        smtputf8: bool = False,
        open_only: bool = False,
        since: float | None = None,
    ) -> Dialogue[Receipt]:
        """Make an attempt as `Session.attempt` does, on a session that is kept open.

        If the server has closed that one meanwhile, the mail goes at once on a new one. If commands in one
        write may have been lost or garbled, they are sent one by one on a new one.

        `open_only`: raise SessionLost rather than block to open a session. `since`: see `Session.open`.
        """
        if open_only:
            return (yield from self._attempt_on_open(*mail, smtputf8=smtputf8))
        fresh = one_by_one = False
        while True:
            try:
                with self.borrow(fresh=fresh, since=since) as session:
                    begun = session.attempt(*mail, smtputf8=smtputf8, one_by_one=one_by_one)
                    receipt = yield from begun
                break
            # Of a new session only PipeliningDoubted can be raised, and only once.
            except SessionLost as e:
                fresh = True
                one_by_one = one_by_one or isinstance(e, PipeliningDoubted)
        if one_by_one and receipt.final is not None and receipt.final.accepts:
            self._pipelining.give_up(receipt.refused.values())
        return receipt

    def _attempt_on_open(self, *mail: Any, smtputf8: bool) -> Dialogue[Receipt]:
        session = self._reuse()
        if session is None:
            raise SessionLost("no session is open", of_message=False)
        with self._borrowed(session, close_later=True):
            return (yield from session.attempt(*mail, smtputf8=smtputf8))

    @contextmanager
    def borrow(self, *, fresh: bool = False, since: float | None = None) -> Iterator[Session]:
        """Lend an open session until the block ends; `fresh`: a new one.

        Raises:
          TooManyConnections: others are open, and the server takes no further one.
          NotTaken: none can be opened.
        """
        kept = None if fresh else self._reuse()
        with self._borrowed(kept or self._new(since)) as session:
            yield session

    @contextmanager
    def _borrowed(self, session: Session, *, close_later: bool = False) -> Iterator[Session]:
        """Take the session back after the block; `close_later`: do not close it here, as that blocks."""
        opened_before = self._opened_ever
        try:
            yield session
        except ConnectionRefused as e:  # The server may say so as late as at MAIL.
            self._drop(session)
            self._check_others(e, opened_before)
            raise
        except BaseException:
            self._drop(session)  # Nobody knows how far the conversation had come.
            raise
        if not session.is_used_up:
            session.was_idle = True
            self._idle.append(session)
        elif not close_later or session.smtp.sock is None:
            self._close(session)
        else:
            self._used_up.append(session)

    def close(self) -> None:
        for sessions in (self._idle, self._used_up):
            while sessions:
                self._close(sessions.pop())

    def _reuse(self) -> Session | None:
        while True:
            try:
                # The last one in: the others may grow old and be closed.
                session = self._idle.pop()
            except IndexError:
                return None
            if session.is_reusable:
                return session
            self._drop(session)

    def _new(self, since: float | None) -> Session:
        with suppress(IndexError):
            # So that there are never more than can be borrowed at a time.
            self._close(self._used_up.pop())
        with self._counts:
            self._opening += 1
            opened_before = self._opened_ever
        is_open = False
        try:
            session = Session(self.hop, login=self._login, pipelining=self._pipelining)
            session.open(since=since)
            is_open = True
            return session
        except ConnectionRefused as e:
            refusal = e
        except OSError as e:
            reason = f"{self.hop.ca_file} is no file of certificates: {describe(e)}"
            raise NotTaken(reason, of_message=False) from e
        finally:
            self._count(opening=-1, opened=int(is_open))
        self._check_others(refusal, opened_before)
        raise refusal

    def _check_others(self, refusal: ConnectionRefused, opened_before: int) -> None:
        """Raise TooManyConnections if the server has other sessions of ours.

        `opened_before`: how many it had ever taken when this one was begun.
        """
        with self._counts:
            self._counts.wait_for(lambda: self._has_others(opened_before) or not self._opening)
            if self._has_others(opened_before):
                raise TooManyConnections(
                    refusal.reply,
                    code=refusal.code,
                    open_connections=self._open,
                ) from refusal

    def _has_others(self, opened_before: int) -> bool:
        return bool(self._open) or self._opened_ever > opened_before

    def _drop(self, session: Session) -> None:
        session.drop()
        self._count(ended=1)

    def _close(self, session: Session) -> None:
        session.close()
        self._count(ended=1)

    def _count(self, *, opening: int = 0, opened: int = 0, ended: int = 0) -> None:
        with self._counts:
            self._opening += opening
            self._opened_ever += opened
            self._open += opened - ended
            self._counts.notify_all()
