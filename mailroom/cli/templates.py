"""The commands about stored templates: flask templates list, show, save, delete, preview."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from mailroom.api.routes.templates import preview_json, read_texts, template_json
from mailroom.cli.context import CommandContext
from mailroom.cli.output import AS_JSON, AS_JSON_LINES, errors_in_a_line
from mailroom.model.times import timestamp_seconds
from mailroom.store.templates import Template, Templates
from mailroom.submission.strict_json import parse_json

PAGE_SIZE = 100


@click.group("templates")
def templates_group() -> None:
    """Stored texts with {{ variables }}, which a mail names."""


@templates_group.command("list")
@AS_JSON_LINES
@click.pass_obj
def list_templates(context: CommandContext, as_json: bool) -> None:
    """List all templates by name."""
    with errors_in_a_line(), context.open_database() as database:
        for row in every_template(Templates(database)):
            updated_at = timestamp_seconds(row["updated_at"])
            if as_json:
                created_at = timestamp_seconds(row["created_at"])
                click.echo(json.dumps(row | {"created_at": created_at, "updated_at": updated_at}))
            else:
                click.echo(f"{row['name']}  {updated_at}  {row['subject']}")


@templates_group.command("show")
@click.argument("name")
@AS_JSON
@click.pass_obj
def show_template(context: CommandContext, name: str, as_json: bool) -> None:
    """Show the subject, text and HTML of a template."""
    with errors_in_a_line(), context.open_database() as database:
        template = find_template(Templates(database), name)
    if as_json:
        click.echo(json.dumps(template_json(template), ensure_ascii=False))
    else:
        print_parts({"subject": template.subject, "text": template.text, "html": template.html})


@templates_group.command("save")
@click.argument("name")
@click.option("--subject", required=True, help="One line, which may have {{ variables }} too.")
@click.option(
    "--text",
    type=click.File(encoding="utf-8"),
    help="A file with the text part; - for standard input.",
)
@click.option("--html", type=click.File(encoding="utf-8"), help="A file with the HTML part.")
@AS_JSON
@click.pass_obj
def save_template(
    context: CommandContext, name: str, subject: str, text: Any, html: Any, as_json: bool
) -> None:
    """Create or replace a template."""
    params = {"subject": subject}
    for part, file in (("text", text), ("html", html)):
        if file is not None:
            params[part] = read_text(file)
    with errors_in_a_line(), context.open_database() as database:
        texts = read_texts(name, params)
        saved = Templates(database).save(
            name, subject=texts.subject, text=texts.text, html=texts.html
        )
    if as_json:
        click.echo(json.dumps(template_json(saved.template)))
    else:
        click.echo(f"{name}: {'created' if saved.is_new else 'replaced'}")


@templates_group.command("delete")
@click.argument("name")
@AS_JSON
@click.pass_obj
def delete_template(context: CommandContext, name: str, as_json: bool) -> None:
    """Delete a template. Mail that was accepted before stays as it is."""
    with errors_in_a_line(), context.open_database() as database:
        templates = Templates(database)
        find_template(templates, name)
        templates.delete(name)
    click.echo(json.dumps({"name": name, "deleted": True}) if as_json else f"{name}: deleted")


@templates_group.command("preview")
@click.argument("name")
@click.option("--variables", default="{}", help='A JSON object, like {"name": "Bob"}.')
@AS_JSON
@click.pass_obj
def preview_template(context: CommandContext, name: str, variables: str, as_json: bool) -> None:
    """Show the texts of a mail that uses this template. Sends nothing."""
    with errors_in_a_line(), context.open_database() as database:
        value = parse_json(variables.encode())
        if not isinstance(value, dict):
            raise click.UsageError("expected a JSON object after --variables")
        parts = preview_json(find_template(Templates(database), name), value)
    if as_json:
        click.echo(json.dumps(parts, ensure_ascii=False))
    else:
        print_parts(parts)


def every_template(templates: Templates) -> Iterator[dict[str, Any]]:
    """Yield the rows of all templates, read a page at a time."""
    page = templates.page(limit=PAGE_SIZE)
    while page:
        yield from page
        page = templates.page(limit=PAGE_SIZE, after=page[-1]["name"])


def find_template(templates: Templates, name: str) -> Template:
    template = templates.find(name)
    if template is None:
        raise click.ClickException(f"there is no template with this name in {templates.database}")
    return template


def read_text(file: Any) -> str:
    try:
        return str(file.read())
    except UnicodeDecodeError:
        raise click.ClickException(f"expected UTF-8 in {file.name}, got another encoding") from None


def print_parts(parts: Mapping[str, Any]) -> None:
    click.echo(f"Subject: {parts['subject']}")
    for part in ("text", "html"):
        if parts[part] is not None:
            click.echo(f"\n--- {part}\n{parts[part]}")
