"""What schemathesis cannot know: the settings of the server, and what it has sent before."""

import itertools
import os

import schemathesis

requests = itertools.count()


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Name the models that `MODELS` allows: a job may name no other, whatever it is spelled like."""
    fields = raw_schema["components"]["schemas"]["CreateChat"]["properties"]
    for field in ("model", "fallback_model"):
        fields[field]["enum"] = [*os.environ["MODELS"].split(","), None]


@schemathesis.hook
def before_call(context, case, kwargs):
    """Send no idempotency key twice: with another body that is refused, as it must be. What is no key stays."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and 1 <= len(key) <= 255:
        case.headers["Idempotency-Key"] = f"{key[:247]}{next(requests):08}"
