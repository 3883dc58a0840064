"""Delivery status notifications (RFC 3464), written as Postfix writes them."""

import secrets

_NOTICE = """\
Return-Path: <>
From: MAILER-DAEMON@mx.example.org (Mail Delivery System)
To: ops@example.org
Subject: Undelivered Mail Returned to Sender
Message-ID: <{token}@mx.example.org>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain; charset=us-ascii

I'm sorry to have to inform you that your message could not be delivered.

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.org

Final-Recipient: rfc822; {address}
Action: {action}
Status: {status}
Diagnostic-Code: smtp; {words}

--b
Content-Type: text/rfc822-headers

Message-ID: <{message_id}>
Subject: Hello

--b--
"""

UNKNOWN = "550 5.1.1 no such user here"


def notice(
    message_id: str,
    address: str = "bob@example.org",
    *,
    action: str = "failed",
    status: str = "5.1.1",
    words: str = UNKNOWN,
) -> bytes:
    """Return a notice about one recipient of the mail with this Message-ID."""
    text = _NOTICE.format(
        token=secrets.token_hex(8),
        message_id=message_id,
        address=address,
        action=action,
        status=status,
        words=words,
    )
    return text.encode()
