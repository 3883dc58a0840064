"""HTTP in: the Flask application.

    python3 app.py       serve on port 5000; a worker runs in a second terminal:
                         celery -A mailasync worker --loglevel=INFO
    flask up             everything in one process, with a disposable inbox

The tutorial this service began with is three lines in a route. They are here, and each has this behind it:

    request.get_json()   mailroom/api/http/request.py reads bytes, mailroom/submission/reader.py says what is
                         wrong with them
    sendMail.delay(id)   the mail is committed first, by mailroom/store/messages/outbox.py; then the thread of
                         mailroom/broker/publisher.py carries its id to RabbitMQ, where mailasync.py gets it
    return "sent", 200   the answer has the id, with which `GET /v1/messages/<id>` tells where the mail is

All other routes are in mailroom/api/routes, the pages in mailroom/web.
"""

from functools import partial

from flask import Blueprint, Flask, Response

from mailasync import sendMail
from mailroom.api.http.request import mail_body
from mailroom.api.routes import messages
from mailroom.api.services import Services
from mailroom.cli import commands
from mailroom.config.environment import load
from mailroom.config.settings import Settings, SettingsError, database_url
from mailroom.model.errors import WrongDatabaseURL
from mailroom.server.application import Application, set_up
from mailroom.server.serve import inbox, serve_web
from mailroom.server.up import up
from mailroom.store.db.database import Database
from mailroom.worker import runtime


def create_app(
    settings: Settings | None = None, *blueprints: Blueprint, database: Database | None = None
) -> Flask:
    """Make the application, with these blueprints of one's own.

    It starts no thread and opens no connection before the first request.
    """
    settings = settings or load()
    runtime.configure(settings)
    services = make_services(settings, database)
    app = Application(__name__)
    set_up(app, services, blueprints)

    @app.post("/")
    def post_tutorial() -> Response:
        """Accept a mail that goes after the simulated heavy work; answers 200 as soon as it is on disk."""
        submission = messages.submit(
            mail_body, work_seconds=services.settings.SIMULATED_WORK_SECONDS, status=200
        )
        if submission.id:
            sendMail.delay(submission.id)
        return messages.answer(submission)

    for command in commands(
        settings,
        up=partial(up, create_app, settings),
        inbox=partial(inbox, settings),
        message_id=services.reader.message_id,
    ):
        app.cli.add_command(command)
    return app


def make_services(settings: Settings, database: Database | None) -> Services:
    """Make what the routes work with, on the database of the settings if no other is given."""
    try:
        outbox = database or Database(database_url(settings))
    except WrongDatabaseURL as e:
        raise SettingsError(str(e)) from None
    return Services.on(
        outbox,
        settings,
        reader=runtime.submission_reader(settings, outbox),
        publisher=partial(runtime.start_publisher, outbox),
        send=sendMail.delay,
        run=runtime.run_job,
    )


def main(*blueprints: str) -> None:
    """Serve on HOST and PORT; accepts mail whether a worker and RabbitMQ are there or not.

    `blueprints` of one's own are named, "package.module:blueprint": the process that serves imports them.
    """
    serve_web(create_app, load(), *blueprints)


if __name__ == "__main__":
    main()
