"""Tells clients with a rate limit what they have left.

The header fields are those of draft-ietf-httpapi-ratelimit-headers, and the older `RateLimit-…` ones.
"""

from flask import Blueprint, Response, g

from mailroom.api.problems import problem
from mailroom.store.keys.rate_limits import WINDOW_SECONDS, Rate, RateLimited

blueprint = Blueprint("limits", __name__)


@blueprint.app_errorhandler(RateLimited)
def limited(error: RateLimited) -> Response:
    return problem(
        429,
        "rate_limit_exceeded",
        "The API key has sent as much as it may for now",
        str(error),
        headers={"Retry-After": str(error.rate.retry_seconds)},
    )


@blueprint.after_app_request
def add_headers(response: Response) -> Response:
    """Add the fields if this request was charged, even if it was refused; a repeated one is free."""
    charge = g.get("charge")
    if charge is not None and charge.rate is not None:
        response.headers.update(headers(charge.rate))
    return response


def headers(rate: Rate) -> dict[str, str]:
    """Return the fields; their seconds are the time until the whole limit is available, a part is earlier."""
    return {
        "RateLimit-Policy": f'"default";q={rate.per_minute};w={WINDOW_SECONDS}',
        "RateLimit": f'"default";r={rate.remaining};t={rate.full_seconds}',
        "RateLimit-Limit": str(rate.per_minute),
        "RateLimit-Remaining": str(rate.remaining),
        "RateLimit-Reset": str(rate.full_seconds),
    }
