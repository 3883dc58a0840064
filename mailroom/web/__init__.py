"""The pages for people: they show what the API's functions return, and work without scripts."""

from mailroom.web import (
    compose,
    dashboard,
    docs,
    event_stream,
    home,
    jobs,
    keys,
    layout,
    messages,
    sign_in,
    suppressions,
    templates,
    webhooks,
)

BLUEPRINTS = (
    layout.assets,
    *(
        module.blueprint
        for module in (
            home,
            dashboard,
            messages,
            compose,
            jobs,
            templates,
            suppressions,
            webhooks,
            keys,
            event_stream,
            sign_in,
            docs,
        )
    ),
    sign_in.sign_out_blueprint,
)
