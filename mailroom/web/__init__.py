"""Pages that a person looks at: rendered here, of what the API's own functions say and do; a script only makes them look again."""

from mailroom.web import compose, dashboard, docs, jobs, keys, layout, live, messages, pages, sign_in, suppressions, templates, webhooks

BLUEPRINTS = (
    layout.assets, *(module.blueprint for module in (pages, dashboard, messages, compose, jobs, templates, suppressions, webhooks, keys,
                                                     live, sign_in, docs)), sign_in.sign_out_blueprint)
