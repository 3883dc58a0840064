"""Every setting with its default, its unit and the reason for the default.

A setting NAME is overridden by the environment variable MAILASYNC_NAME, or by a line in `.env` beside this
file (in HOME, where a wheel is installed); secrets also by MAILASYNC_NAME_FILE, the path of a file that holds
the value. A wrong value or an unknown name stops the start. `make docs` makes docs/settings.md of this file.

git tracks this file: put a password here only to try things out, and never commit it. git ignores `.env`.
"""

from typing import Literal

# --- Your mail account ---

#: The account that sends, `you@gmail.com`. With MAIL_PASSWORD and no SMTP_HOST, mail goes out through Gmail.
MAIL_USERNAME: str = ""

#: Its password; for Gmail a 16-letter app password, never the account's own. Secret.
MAIL_PASSWORD: str = ""

#: The address in From and in the envelope. "": MAIL_USERNAME; without an account, `mailasync@localhost`.
MAIL_FROM: str = ""

#: Further addresses that a mail may name as its `from`, separated by commas; `@example.org` stands for all
#: of a domain. "": MAIL_FROM alone; any address, where the next hop is on this machine and wants no login.
MAIL_ALIASES: str = ""

#: Path of a yagmail OAuth2 file (JSON with a refresh token), instead of MAIL_PASSWORD. It must exist: nothing
#: prompts for it.
MAIL_OAUTH2_FILE: str = ""

#: Path of a TOML file with several accounts, each an [[account]] with name, username, password, from,
#: messages_per_day and more. "": the one account of the settings above.
ACCOUNTS_FILE: str = ""

# --- The next hop, the server that takes our mail ---

#: Host name or address; `::1` and `[::1]` are the same, here and in the other hosts.
#: "": `smtp.gmail.com` if there is an account, else the disposable inbox on 127.0.0.1.
SMTP_HOST: str = ""

#: TCP port. 0: the usual one for SMTP_SECURITY: 465 for ssl, 587 for starttls, 25 for none.
SMTP_PORT: int = 0

#: ssl: TLS from the first byte; starttls: TLS before the login and the mail, which otherwise stays here;
#: none: no encryption.
SMTP_SECURITY: Literal["ssl", "starttls", "none"] = "ssl"

#: on: log in with the account; off: the server is a relay that knows us by our address.
SMTP_AUTH: Literal["on", "off"] = "on"

#: Path of a PEM file with the authority that signed the server's certificate. "": the system's authorities.
SMTP_CA_FILE: str = ""

#: The name we give ourselves to the server: `mail.example.org`, or an address such as [192.0.2.1] or
#: [IPv6:2001:db8::1]. "": this machine's full name if it has one, else the domain of the sender's address,
#: else our own address on that connection.
EHLO_NAME: str = ""

#: SMTP sessions that one worker keeps open at most, shared equally by its accounts. Gmail drops clients that
#: open many more; where a server takes fewer, fewer are used.
SMTP_CONNECTIONS: int = 10

#: Mails on one connection before it is closed and another is opened. 0: 80 for Gmail and the inbox, 10 for
#: other servers, as Exim delivers no more of one connection at once.
SMTP_MAILS_PER_CONNECTION: int = 0

#: auto: MAIL, RCPT and DATA go in one write to a server that announces PIPELINING; one that loses or garbles
#: them gets them one by one, at once and from then on. off: always one by one. `flask doctor` tries it.
SMTP_PIPELINING: Literal["auto", "off"] = "auto"

#: Seconds to wait for the connection and for each reply; after the final dot it is 600 (RFC 5321, 4.5.3.2.6).
SMTP_TIMEOUT_SECONDS: float = 60.0

#: How long to wait after attempt 1, 2, …, each varied by 20 %, so that retries spread. When the list is used
#: up, the mail fails.
RETRY_SCHEDULE: str = "30s, 2m, 10m, 1h*3, 4h*4"

#: What to do when the connection broke after the final dot, so that nobody knows whether the mail was taken.
#: resend: send it again with the same Message-ID, as SMTP asks for; hold: stop and leave it to a person.
#: Where IMAP_HOST is known, the Sent folder is searched for the mail first.
ON_UNCERTAIN: Literal["resend", "hold"] = "resend"

#: Server of the account's own mailbox, where bounces come and sent mails are kept; the account's login is
#: used. "": imap.gmail.com for Gmail, outlook.office365.com for Microsoft 365, else none. off: none.
IMAP_HOST: str = ""

#: TCP port. 0: the usual one for IMAP_SECURITY: 993 for ssl, 143 for starttls and none.
IMAP_PORT: int = 0

#: As SMTP_SECURITY, with the same authorities (SMTP_CA_FILE).
IMAP_SECURITY: Literal["ssl", "starttls", "none"] = "ssl"

#: How often to look for bounces where the server does not tell of new mail at once (IDLE).
BOUNCES_EVERY_SECONDS: float = 60.0

#: Folder into which bounces are moved that were understood. "": they stay, unread, where they are.
BOUNCES_FOLDER: str = ""

# --- Web ---

#: Address to listen on. Anything but loopback needs API_KEY, or a key made by `flask keys create`.
HOST: str = "127.0.0.1"

#: TCP port. On a Mac, AirPlay may hold 5000: take another one, or turn AirPlay's receiver off.
PORT: int = 5000

#: Requests served at the same time, each in a thread. Clients that wait, open pages and long bodies have
#: threads beside these.
WEB_THREADS: int = 128

#: A key that may do everything, beside those of `flask keys create`. Without any key, only your own user on
#: this machine is served. Secret.
API_KEY: str = ""

#: Where recipients of mail reach this service, https://mail.example.org, for links to unsubscribe by.
#: "": there are no such links.
PUBLIC_URL: str = ""

#: Largest request body, in bytes; a larger one gets 413. Enough for the largest mail that Gmail takes.
REQUEST_MAX_BYTES: int = 36_000_000

# --- Mail that programs hand in over SMTP ---

#: TCP port for programs that speak SMTP and no HTTP, on HOST. They log in with an API key as the password of
#: any user; without any key, only your own user on this machine is served. 0: none, but 2525 for `flask up`.
SUBMISSION_PORT: int = 0

#: Path of a PEM file with the certificate, and its chain, for TLS there. "": no TLS, and so no login for
#: other machines.
SUBMISSION_CERT_FILE: str = ""

#: Path of a PEM file with the key of that certificate. "": it is in the same file.
SUBMISSION_KEY_FILE: str = ""

#: starttls: TLS when the client asks for it, which it has to before a login from another machine; ssl: TLS
#: from the first byte, as on port 465.
SUBMISSION_SECURITY: Literal["starttls", "ssl"] = "starttls"

# --- Queue and database ---

#: Directory of the database files, and of `.env`; only the environment sets it. "": in a clone, `instance/`
#: and the clone itself; for an installed wheel, `~/.local/state/mailasync`, or on a Mac
#: `~/Library/Application Support/mailasync`.
HOME: str = ""

#: The broker. "": none for `flask up`, pyamqp://guest@localhost// for the pair. Secret.
BROKER_URL: str = ""

#: Path of a PEM file with the authority that signed the certificate of a broker at amqps://.
#: "": the system's authorities.
BROKER_CA_FILE: str = ""

#: The kind of queue in RabbitMQ. Nudges can be lost without harm, so quorum is for clusters only.
QUEUE_TYPE: Literal["classic", "quorum"] = "classic"

#: on: workers also take our tasks from `celery`, the queue of Celery clients that name none, until a task of
#: somebody else turns up there: that one is given back, and the queue is not consumed until the worker is
#: restarted. off: never; clients name `queue="mail"`.
SERVE_CELERY_QUEUE: Literal["on", "off"] = "on"

#: SQLAlchemy URL, sqlite:////absolute/path or postgresql://user@host/name. "": a file in HOME.
#: postgres://, postgresql+psycopg2:// and postgresql+asyncpg:// are read as postgresql://. Secret.
DATABASE_URL: str = ""

#: Seconds after which a worker without a heartbeat is taken for dead, and others get its mails and jobs.
LEASE_SECONDS: float = 20.0

#: Days after which what has ended is deleted: messages with texts and recipients, jobs with results and
#: files. 0: never.
RETENTION_DAYS: int = 30

#: on: webhooks may call this machine, also over http, for development; off: only public addresses, over
#: https.
WEBHOOKS_TO_LOOPBACK: Literal["on", "off"] = "off"

# --- Heavy work ---

#: How long the simulated heavy work of `POST /` takes, in seconds. 0: none, the mail is sent at once.
SIMULATED_WORK_SECONDS: float = 5.0

#: Modules that register job types, separated by commas, such as `examples.cafe.jobs`.
JOBS: str = ""

#: Jobs that one worker runs at the same time. One slot is kept for each queue that has nothing running.
JOB_SLOTS: int = 50

#: How many of these may be in child processes; each takes some 30 MB. Jobs that only wait take threads
#: instead.
JOB_PROCESSES: int = 8

# --- The disposable inbox ---

#: Address to listen on when it runs alone (`flask inbox`), for mail and pages. Anything but loopback needs
#: API_KEY, and so do its pages then: a browser takes it as the password of any user.
INBOX_HOST: str = "127.0.0.1"

#: TCP port of its SMTP server.
INBOX_SMTP_PORT: int = 1025

#: TCP port of its pages when it runs alone.
INBOX_PORT: int = 8025

# --- Logs ---

#: Path of a file that gets the log as well; logrotate may move it away. "": only the terminal. For a worker,
#: Celery's `--logfile` wins.
LOG_FILE: str = ""

#: `text`, or `json`: one object a line.
LOG_FORMAT: Literal["text", "json"] = "text"
