"""Sender accounts over HTTP: the state of each, and how much it may still send."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, jsonify
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.answers import AccountJson, BudgetJson, MailboxJson
from mailroom.api.services import services
from mailroom.config.accounts import Account
from mailroom.model.account import AccountState
from mailroom.model.host_names import host_and_port
from mailroom.model.times import timestamp
from mailroom.store.mailboxes import accounts_being_read
from mailroom.store.workers import hanging_accounts

blueprint = Blueprint("accounts", __name__)


@blueprint.get("/v1/accounts")
def list_accounts() -> Response:
    """List the sender accounts: state, mails sent in 24 hours, what is left of their limits, and mailbox."""
    return jsonify({"data": accounts_json()})


@blueprint.post("/v1/accounts/<path:account>/retry")
def retry_account(account: str) -> Response:
    """Let one mail try an account that cannot send, at once; 409 if it can."""
    names = [known.name for known in services().known_accounts]
    if account not in names:
        raise NotFound(f"expected the name of an account, got {account[:100]!r}")
    if not services().accounts.try_now(account):
        raise Conflict("expected an account that cannot send, got one that can")
    by_name = {account_json["name"]: account_json for account_json in accounts_json()}
    return jsonify(by_name[account])


def accounts_json() -> list[AccountJson]:
    """Return all accounts, each with its state."""
    known = {account.name: account for account in services().known_accounts}
    hanging = hanging_accounts(services().outbox.database, services().settings.LEASE_SECONDS)
    rows = services().accounts.details()
    boxes = _mailboxes_json()
    return [
        _account_json(row, known[row["name"]], hanging.get(row["name"], ""), boxes.get(row["name"]))
        for row in rows
    ]


def _mailboxes_json() -> dict[str, MailboxJson]:
    """Return the mailboxes of the accounts that have one to read, by account."""
    rows = services().mailboxes()
    is_read = accounts_being_read(services().outbox.database, services().settings.LEASE_SECONDS)
    boxes: dict[str, MailboxJson] = {}
    for account in services().known_accounts:
        if account.mailbox is None:
            continue
        row = rows.get(account.name)
        boxes[account.name] = {
            "host": host_and_port(account.mailbox.host, account.mailbox.port),
            "has_reader": account.name in is_read,
            "read_at": timestamp(row.read_at) if row else None,
            "sent_folder": row.sent_folder if row else None,
            "trouble": row.trouble if row else None,
        }
    return boxes


def _account_json(
    row: Mapping[str, Any], account: Account, hanging: str, mailbox: MailboxJson | None
) -> AccountJson:
    """Return an account with its state; `hanging` says that its server hangs, "" if it does not."""
    return {
        "name": row["name"],
        "from": account.sender.address,
        "next_hop": str(account.hop),
        "status": row["state"],
        "why": _why(row, hanging),
        "since": timestamp(row["since"]),
        "tried_again_at": timestamp(row["until"]),
        "messages": _budget(account.messages_per_day, row["messages"]),
        "recipients": _budget(account.recipients_per_day, row["recipients"]),
        "mailbox": mailbox,
    }


def _budget(limit: int, sent: int) -> BudgetJson | None:
    """Return the use of a limit in the last 24 hours; None if there is no limit."""
    if not limit:
        return None
    return {"limit": limit, "sent": sent, "left": max(0, limit - sent)}


_MEANINGS = {
    AccountState.PAUSED: "no mail goes by it for now",
    AccountState.HALTED: "the server refuses this account",
    AccountState.PARKED: "the server's daily limit is reached",
}


def _why(row: Mapping[str, Any], hanging: str) -> str:
    """Say in one sentence whether an account sends mail, and what its mails wait for."""
    state = AccountState(row["state"])
    if state is AccountState.OK and hanging:
        return f"all of a worker's connections are taken: {hanging}; its mails wait for a free one"
    if state is AccountState.OK:
        return "mail goes by this account"
    until = timestamp(row["until"])
    return f"{_MEANINGS[state]}: {row['reason']}; its mails are kept, and one is tried at {until}"
