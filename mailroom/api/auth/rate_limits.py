"""Tells clients of limited keys how much they have left, in the draft's fields and in those of before (ietf-httpapi-ratelimit-headers)."""

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
def tell(answer: Response) -> Response:
    """Add the fields where messages were charged, accepted or not; a replay was not."""
    charge = g.get("charge")
    if charge is not None and charge.rate is not None:
        answer.headers.update(headers(charge.rate))
    return answer


def headers(rate: Rate) -> dict[str, str]:
    """Seconds are those until all of it is there again; a part of it is there sooner."""
    return {
        "RateLimit-Policy": f'"default";q={rate.per_minute};w={WINDOW_SECONDS}',
        "RateLimit": f'"default";r={rate.remaining};t={rate.full_seconds}',
        "RateLimit-Limit": str(rate.per_minute),
        "RateLimit-Remaining": str(rate.remaining),
        "RateLimit-Reset": str(rate.full_seconds),
    }
