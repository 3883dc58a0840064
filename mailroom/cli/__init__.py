"""The commands: `flask up`, `send`, `status`, `doctor` and the others; docs/commands.md lists them."""

from copy import copy

import click

from mailroom.cli.context import CommandContext
from mailroom.cli.installation import config_command, doctor_command
from mailroom.cli.keys import keys_group
from mailroom.cli.maintenance import db_group, purge_command
from mailroom.cli.messages import (
    cancel_command,
    hold_command,
    release_command,
    reschedule_command,
    resend_command,
    retry_command,
)
from mailroom.cli.send import send_command
from mailroom.cli.sendmail import sendmail_command
from mailroom.cli.serve import inbox_command, up_command, web_command, worker_command
from mailroom.cli.suppressions import suppressions_group
from mailroom.cli.templates import templates_group
from mailroom.cli.watch import status_command, tail_command

COMMANDS: tuple[click.Command, ...] = (
    doctor_command,
    up_command,
    web_command,
    worker_command,
    inbox_command,
    db_group,
    keys_group,
    purge_command,
    cancel_command,
    hold_command,
    retry_command,
    release_command,
    reschedule_command,
    resend_command,
    suppressions_group,
    templates_group,
    send_command,
    sendmail_command,
    status_command,
    tail_command,
    config_command,
)


def commands(context: CommandContext) -> list[click.Command]:
    """Return the commands of one application; each gets `context` by @click.pass_obj."""
    return [_bind(command, context) for command in COMMANDS]


def _bind(command: click.Command, context: CommandContext) -> click.Command:
    # The commands of this process are one set; several applications may have a context each, as in tests.
    bound = copy(command)
    bound.context_settings = {**command.context_settings, "obj": context}
    return bound
