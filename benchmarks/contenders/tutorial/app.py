"""The tutorial's web half: the work is handed to Celery, and the answer comes at once."""

import os

from flask import Flask, request
from flask.typing import ResponseReturnValue
from tasks import sendMail  # type: ignore[import-not-found]  # beside this file, which is run by itself

app = Flask(__name__)


@app.route("/", methods=["POST"])
def send() -> ResponseReturnValue:
    data = request.get_json()
    sendMail.delay(data["to"], data["subject"], data["contents"])
    return "Mail is on its way", 200


if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]))
