"""HTTP in: the Flask application.

    python3 app.py       serve on port 5000; a worker runs in a second terminal:
                         celery -A mailasync worker --loglevel=INFO
    flask up             everything in one process, with a disposable inbox

In the tutorials that this service grew out of, a route reads the JSON, calls `sendMail.delay` and answers
200. The route of `POST /` below does the same. Behind each of its steps:

    reading the JSON      mailroom/api/http/request.py reads the bytes; mailroom/submission/reader.py and
                          mailroom/submission/message.py make a mail of them, or say which field is wrong
    committing the mail   mailroom/store/messages/outbox.py writes it to the database, before anything else
    sendMail.delay(id)    mailroom/broker/publisher.py carries the id to RabbitMQ in a thread of its own, and
                          mailasync.py gets it there
    answering 200         with the id, so that `GET /v1/messages/<id>` says where the mail is

All other routes are in mailroom/api/routes, the pages in mailroom/web, and those of /inbox in mailroom/inbox.
"""

from functools import partial

from flask import Blueprint, Flask, Response

from mailasync import sendMail
from mailroom.api.http.request import mail_body
from mailroom.api.routes import messages
from mailroom.api.services import Services
from mailroom.cli import commands
from mailroom.cli.context import CommandContext
from mailroom.config.environment import load
from mailroom.config.settings import Settings, SettingsError, database_url
from mailroom.model.errors import WrongDatabaseURL
from mailroom.server.application import Application, set_up
from mailroom.server.serve import serve_inbox, serve_web
from mailroom.server.up import up
from mailroom.store.db.database import Database
from mailroom.worker import runtime


def create_app(
    settings: Settings | None = None, *blueprints: Blueprint, database: Database | None = None
) -> Flask:
    """Make the application; your own `blueprints` are registered beside its routes.

    Starts no thread and opens no connection before the first request.
    """
    settings = settings or load()
    runtime.configure(settings)
    services = make_services(settings, database)
    app = Application(__name__)
    set_up(app, services, blueprints)

    @app.post("/")
    def post_mail() -> Response:
        """Accept a mail, which goes out after the simulated heavy work; answer 200 once it is on disk."""
        submission = messages.submit(
            mail_body, work_seconds=settings.SIMULATED_WORK_SECONDS, status=200
        )
        if submission.id:
            sendMail.delay(submission.id)
        return messages.answer(submission)

    for command in commands(command_context(settings, services)):
        app.cli.add_command(command)
    return app


def command_context(settings: Settings, services: Services) -> CommandContext:
    """Make what the commands of `flask` work with."""
    return CommandContext(
        settings=settings,
        up=partial(up, create_app, settings),
        web=partial(serve_web, create_app, settings),
        inbox=partial(serve_inbox, settings),
        message_id=services.reader.message_id,
    )


def make_services(settings: Settings, database: Database | None) -> Services:
    """Make the objects that the routes work with, on `database` or else on the database of the settings."""
    try:
        database = database or Database(database_url(settings))
    except WrongDatabaseURL as e:
        raise SettingsError(str(e)) from None
    return Services.on(
        database,
        settings,
        reader=runtime.submission_reader(settings, database),
        publisher=partial(runtime.start_publisher, database),
        send=sendMail.delay,
        run=runtime.run_job,
    )


def main(*blueprints: str) -> None:
    """Serve on HOST and PORT. Mail is accepted even while no worker and no RabbitMQ is running.

    Your own `blueprints` are named as "package.module:blueprint", and imported by the serving process.
    """
    serve_web(create_app, load(), *blueprints)


if __name__ == "__main__":
    main()
