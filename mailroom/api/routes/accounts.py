"""Sender accounts over HTTP: whether each can send, and how much it still may."""

from typing import Any

from flask import Blueprint, Response, jsonify
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.answers import AccountJson, BudgetJson
from mailroom.api.services import services
from mailroom.model.account import AccountState
from mailroom.model.times import timestamp
from mailroom.store.workers import hanging_accounts

blueprint = Blueprint("accounts", __name__)


@blueprint.get("/v1/accounts")
def list_accounts() -> Response:
    """Each account: its state, what it sent in the last 24 hours, and what it may still send."""
    return jsonify({"data": accounts_json()})


@blueprint.post("/v1/accounts/<path:account>/retry")
def retry_account(account: str) -> Response:
    """Have one mail try an account that cannot send, at once; 409 if it can."""
    if account not in {known.name for known in services().known_accounts}:
        raise NotFound(f"expected the name of an account, got {account[:100]!r}")
    if not services().accounts.try_now(account):
        raise Conflict("expected an account that cannot send, got one that can")
    return jsonify(next(one for one in accounts_json() if one["name"] == account))


def accounts_json() -> list[AccountJson]:
    """Return all accounts, each with its state."""
    known = {account.name: account for account in services().known_accounts}
    hanging = hanging_accounts(services().outbox.database, services().settings.LEASE_SECONDS)
    rows = services().accounts.details()
    return [_account_json(row, known[row["name"]], hanging.get(row["name"], "")) for row in rows]


def _account_json(row: dict[str, Any], account: Any, hangs: str) -> AccountJson:
    return {
        "name": row["name"],
        "from": account.sender.address,
        "next_hop": str(account.hop),
        "status": row["state"],
        "why": _why(row, hangs),
        "since": timestamp(row["since"]),
        "tried_again_at": timestamp(row["until"]),
        "messages": _budget(account.messages_per_day, row["messages"]),
        "recipients": _budget(account.recipients_per_day, row["recipients"]),
    }


def _budget(limit: int, sent: int) -> BudgetJson | None:
    """Return what counts for the rolling 24 hours; None where there is no limit: nothing is counted then."""
    return {"limit": limit, "sent": sent, "left": max(0, limit - sent)} if limit else None


def _why(row: dict[str, Any], hangs: str) -> str:
    """Say in one sentence whether mail goes by an account, and what it waits for."""
    if row["state"] == AccountState.OK and hangs:
        return f"all of a worker's connections are taken: {hangs}; its mails wait for a free one"
    if row["state"] == AccountState.OK:
        return "mail goes by this account"
    what = {
        AccountState.PAUSED: "no mail goes by it for now",
        AccountState.HALTED: "the server refuses this account",
        AccountState.PARKED: "the server's daily limit is reached",
    }[AccountState(row["state"])]
    return f"{what}: {row['reason']}; its mails are kept, and one is tried at {timestamp(row['until'])}"
