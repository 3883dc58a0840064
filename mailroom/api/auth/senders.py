"""Checks the sender of a mail against the senders that the API key of the request may use."""

from dataclasses import replace

from mailroom.api.auth import guard
from mailroom.api.services import Services, services
from mailroom.model.message import Address
from mailroom.store.messages.outbox import NewMessage


def permitted(mail: NewMessage, *, pointer: str = "#") -> NewMessage:
    """Return the mail with the key of this request; abort with 403 if the key may not send from its address.

    `pointer` is the JSON pointer of the mail in the request.
    """
    key = guard.current_key()
    if key.senders:
        sender = mail.message.sender or account_sender(mail.sender)
        guard.check_sender(sender.address, pointer=f"{pointer}/from")
    return replace(mail, key_id=key.id) if key.id else mail


def account_sender(account: str | None) -> Address:
    """Return the From of an account's mails that name none; the first account's if it is unknown."""
    return account_sender_of(services(), account)


def account_sender_of(ours: Services, account: str | None) -> Address:
    """Do what `account_sender` does, outside of a request."""
    accounts = ours.known_accounts
    by_name = {known.name: known.sender for known in accounts}
    return by_name.get(account or "", accounts[0].sender)
