"""Sender accounts over HTTP: whether each can send, and how much it still may."""

from typing import Any

from flask import Blueprint, Response, jsonify

from mailroom.api.services import services
from mailroom.api.shown import timestamp
from mailroom.mail.message import AccountState

blueprint = Blueprint("accounts", __name__)


@blueprint.get("/v1/accounts")
def list_accounts() -> Response:
    """Each account: its state, what it sent in the last 24 hours, and what is left of its budget."""
    known = {account.name: account for account in services().known_accounts}
    return jsonify({"data": [_shown(row, known[row["name"]]) for row in services().accounts.standing()]})


def _shown(row: dict[str, Any], account: Any) -> dict[str, Any]:
    return {
        "name": row["name"], "from": account.sender.address, "next_hop": str(account.hop), "status": row["state"], "why": _why(row),
        "since": timestamp(row["since"]), "tried_again_at": timestamp(row["until"]),
        "messages": _budget(account.messages_per_day, row["messages"]),
        "recipients": _budget(account.recipients_per_day, row["recipients"]),
    }


def _budget(limit: int, sent: int) -> dict[str, int] | None:
    """What counts for the rolling 24 hours; None where there is no limit, as nothing is counted then."""
    return {"limit": limit, "sent": sent, "left": max(0, limit - sent)} if limit else None


def _why(row: dict[str, Any]) -> str:
    """One sentence: whether mail goes by it, and what it waits for."""
    if row["state"] == AccountState.OK:
        return "mail goes by this account"
    what = {AccountState.PAUSED: "the server asked for a pause", AccountState.HALTED: "the server refused the login",
            AccountState.PARKED: "the server's daily limit is reached"}[AccountState(row["state"])]
    return f"{what}: {row['reason']}; its mails are kept, and one is tried at {timestamp(row['until'])}"
