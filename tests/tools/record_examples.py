"""Records the saved answers of the Postman collection, by newman against `flask up`: `make postman-examples`."""

import os
import socket
import sys
import tempfile
from pathlib import Path

from tests.services import Unavailable, free_port
from tests.services.processes import service
from tests.tools.check_clients import NEWMAN, Failed, collection_report, start
from tools.postman.examples import examples_in, write_examples


def main() -> int:
    ports = {"INBOX_SMTP_PORT": str(free_port())}
    try:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            database = {"DATABASE_URL": f"sqlite:///{directory}/instance/up.sqlite3"}
            with service(directory, **ports, **database) as served:
                start(served)
                report = collection_report(NEWMAN, served)
            private = {
                str(directory): "/srv/mailasync",
                socket.gethostname(): "mail",
                f":{served.port}": ":5000",
                f":{ports['INBOX_SMTP_PORT']}": ":1025",
                f"up-{os.getpid()}": "up-1",
            }
    except (Failed, Unavailable) as e:
        print(f"{e}\nnothing was recorded", file=sys.stderr)
        return 1
    write_examples(examples_in(report, private))
    return 0


if __name__ == "__main__":
    sys.exit(main())
