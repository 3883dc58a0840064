"""flask templates: list, show, save, delete and preview, directly in the database."""

import json
from collections.abc import Mapping
from typing import Any

import click

from mailroom.api.routes.templates import preview_json, read_texts, template_json
from mailroom.cli.output import AS_JSON, Opened, told
from mailroom.model.times import timestamp_seconds
from mailroom.store.templates import Template, Templates
from mailroom.submission.strict_json import parse_json


def template_commands(opened: Opened) -> click.Group:
    """Return the group; `opened` opens the database."""

    @click.group("templates")
    def group() -> None:
        """Texts with {{ variables }} that a message names."""

    @group.command("list")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
    def list_command(as_json: bool) -> None:
        """All of them, by name."""
        with told(), opened() as database:
            after, page = "", Templates(database).page(limit=100)
            while page:
                for row in page:
                    click.echo(
                        json.dumps(_told(row))
                        if as_json
                        else f"{row['name']}  {timestamp_seconds(row['updated_at'])}  {row['subject']}"
                    )
                after = page[-1]["name"]
                page = Templates(database).page(limit=100, after=after)

    @group.command("show")
    @click.argument("name")
    @AS_JSON
    def show_command(name: str, as_json: bool) -> None:
        """Its subject, text and HTML."""
        with told(), opened() as database:
            template = _found(Templates(database), name)
        texts = {"subject": template.subject, "text": template.text, "html": template.html}
        _say(template_json(template) if as_json else texts, as_json=as_json)

    @group.command("save")
    @click.argument("name")
    @click.option("--subject", required=True, help="One line; it may have {{ variables }}, too.")
    @click.option(
        "--text", type=click.File(encoding="utf-8"), help="A file with the text form; - for standard input."
    )
    @click.option("--html", type=click.File(encoding="utf-8"), help="A file with the HTML form.")
    @AS_JSON
    def save_command(name: str, subject: str, text: Any, html: Any, as_json: bool) -> None:
        """Create or replace it."""
        given = {part: _read(file) for part, file in (("text", text), ("html", html)) if file is not None}
        with told(), opened() as database:
            asked = read_texts(name, {"subject": subject, **given})
            saved = Templates(database).save(name, subject=asked.subject, text=asked.text, html=asked.html)
        click.echo(
            json.dumps(template_json(saved.template))
            if as_json
            else f"{name}: {'created' if saved.is_new else 'replaced'}"
        )

    @group.command("delete")
    @click.argument("name")
    @AS_JSON
    def delete_command(name: str, as_json: bool) -> None:
        """Delete it; messages that were accepted before stay as they are."""
        with told(), opened() as database:
            templates = Templates(database)
            _found(templates, name)
            templates.delete(name)
        click.echo(json.dumps({"name": name, "deleted": True}) if as_json else f"{name}: deleted")

    @group.command("preview")
    @click.argument("name")
    @click.option("--variables", default="{}", help='A JSON object, like {"name": "Bob"}.')
    @AS_JSON
    def preview_command(name: str, variables: str, as_json: bool) -> None:
        """Show what a mail of it would say."""
        with told(), opened() as database:
            value = parse_json(variables.encode())
            if not isinstance(value, dict):
                raise click.UsageError("expected a JSON object after --variables")
            parts = preview_json(_found(Templates(database), name), value)
        _say(parts, as_json=as_json)

    return group


def _found(templates: Templates, name: str) -> Template:
    template = templates.find(name)
    if template is None:
        raise click.ClickException(f"there is no template of this name in {templates.database}")
    return template


def _read(file: Any) -> str:
    try:
        return str(file.read())
    except UnicodeDecodeError:
        raise click.ClickException(f"expected UTF-8 in {file.name}, got another encoding") from None


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "created_at": timestamp_seconds(row["created_at"]),
        "updated_at": timestamp_seconds(row["updated_at"]),
    }


def _say(parts: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        return click.echo(json.dumps(parts, ensure_ascii=False))
    click.echo(f"Subject: {parts['subject']}")
    for part in ("text", "html"):
        if parts[part] is not None:
            click.echo(f"\n--- {part}\n{parts[part]}")
