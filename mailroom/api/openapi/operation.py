"""The description of an operation (a route and its method), and the parts that operations share."""

from dataclasses import dataclass, field

from mailroom.api.json_schemas import TEXT, Schema

JSON = "application/json"
PROBLEM = "application/problem+json"

#: The header fields of responses: a description and a schema by name. X-Request-Id is in every response.
HEADERS: dict[str, tuple[str, Schema]] = {
    "X-Request-Id": (
        "The id of the request, which is in the log too: the client's own where it sent one.",
        TEXT,
    ),
    "Location": ("The URL of the resource.", TEXT),
    "Idempotency-Replayed": (
        "Present if this repeats the response to an earlier request with the same Idempotency-Key.",
        {"const": "true"},
    ),
    "Preference-Applied": (
        "The longest time the server would have waited.",
        {"type": "string", "pattern": "^wait=[0-9]+$"},
    ),
    "RateLimit": ("What is left, if the key has a limit.", TEXT),
    "RateLimit-Policy": ("The limit, if the key has one.", TEXT),
    "RateLimit-Limit": ("Messages a minute.", {"type": "integer"}),
    "RateLimit-Remaining": ("Messages that are left.", {"type": "integer"}),
    "RateLimit-Reset": ("Seconds until the whole limit is available again.", {"type": "integer"}),
    "Retry-After": ("Seconds to wait.", {"type": "integer"}),
    "Accept-Encoding": (
        "The content codings that a request may have: none.",
        {"const": "identity"},
    ),
    "WWW-Authenticate": ("How to send the API key.", TEXT),
}
RATE_LIMIT_HEADERS = (
    "RateLimit",
    "RateLimit-Policy",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of a request: in its path, its query or its header."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: TEXT)
    location: str = "query"  #: OpenAPI's `in`: path, query or header
    is_repeated: bool = False  #: whether it may come several times; `schema` is that of one of them


@dataclass(frozen=True, kw_only=True)
class ResponseDescription:
    """A response: its meaning, and the schema of its body by media type."""

    description: str
    content: dict[str, Schema | str]  #: a string is the name of one of `answer_schemas()`
    #: names in HEADERS; with a "!" at the end if the field is always present
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A route with its method. Its summary is the docstring of its view; its scopes are in auth/scopes.py."""

    group: str  #: OpenAPI's tag
    answers: dict[int, ResponseDescription]  #: by status
    body: str = ""  #: the name of the schema of the request's body
    raw_body: str = ""  #: the media type of a body that is no JSON
    form: str = ""  #: the field of a multipart form that may hold that body, beside files
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[int, ...] = ()  #: statuses in REFUSALS, beside those that every operation has
    is_open: bool = False  #: whether it needs no API key


def _refusal(description: str, *headers: str) -> ResponseDescription:
    return ResponseDescription(
        description=description, content={PROBLEM: "Problem"}, headers=headers
    )


#: Responses with problem details, by status.
REFUSALS: dict[int, ResponseDescription] = {
    400: _refusal("The body, or a header field of the request, cannot be read."),
    401: _refusal("The API key is missing or unknown.", "WWW-Authenticate!"),
    403: _refusal("The key may not do this, or not send from this address."),
    404: _refusal("There is no such resource."),
    409: _refusal(
        "The resource's state does not allow this; or the Idempotency-Key belongs to another request."
    ),
    413: _refusal("The body is larger than REQUEST_MAX_BYTES."),
    415: _refusal(
        "The body is of another media type, or in a content coding such as gzip.", "Accept-Encoding"
    ),
    422: _refusal("Fields or parameters are wrong; `errors` lists each of them."),
    429: _refusal(
        "The key has used up its limit for now; or too many wrong keys came from this address.",
        "Retry-After!",
        *RATE_LIMIT_HEADERS,
    ),
    503: _refusal(
        "The database is not available, and nothing was done. If `code` is `commit_unconfirmed`, it may "
        "have been done: `Location`, `id` or `ids` say where to look. `Retry-After` is present if it is "
        "safe to send the request again.",
        "Retry-After",
        "Location",
    ),
}
#: The refusals of every operation that reads a body.
BODY_REFUSALS = (400, 413, 415, 422)

LIMIT = Parameter(
    name="limit",
    description="How many to return.",
    schema={"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
)
AFTER = Parameter(name="after", description="`next` of the page before.")
PREFER = Parameter(
    name="Prefer",
    location="header",
    description="`wait=N`: respond when it has ended, or after N seconds; 60 at most (RFC 7240).",
    schema={"type": "string", "examples": ["wait=10"]},
)
#: Bare, or a string in quotes (RFC 9651, 3.3.3).
_KEY_PATTERN = r'^([!#-~][ -~]{0,255}|"([ !#-\[\]-~]|\\["\\]){1,256}")$'
IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    location="header",
    description="A second request with the same key gets the response to the first, and does nothing else.",
    schema={"type": "string", "pattern": _KEY_PATTERN},
)


def json_answer(schema: str, description: str, *headers: str) -> ResponseDescription:
    """Describe a response whose body is JSON of the schema with this name."""
    return ResponseDescription(description=description, content={JSON: schema}, headers=headers)


#: The response 204, which has no body.
DONE = ResponseDescription(description="Done.", content={})
