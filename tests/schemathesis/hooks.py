"""What schemathesis cannot know: the settings of the server, who it is, and what it has sent before."""

import hashlib
import itertools
import os
from datetime import UTC, datetime, timedelta

import schemathesis

requests = itertools.count()


# One pixel.
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def looks_like_a_path(text):
    return 1 <= len(text) <= 1024


def as_path(text):
    names = text.encode().split(b"/")
    is_path = all(0 < len(name) <= 255 and name not in (b".", b"..") and b"\0" not in name for name in names)
    return text if is_path and len(text.encode()) <= 1024 and len(names) <= 64 else hashlib.sha1(text.encode()).hexdigest()


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Say what the contract leaves to words, or the server's settings decide; leave out `WITHOUT`."""
    without = os.environ["WITHOUT"].split(",")
    for path in raw_schema["paths"].values():
        for method in [method for method, operation in path.items() if operation["operationId"] in without]:
            del path[method]
    schemas = raw_schema["components"]["schemas"]

    for asks in ("CreateChat", "CreateSession", "UpdateSession"):
        fields = schemas[asks]["properties"]
        # A job may name the models of `MODELS` and no other, whatever it is spelled like.
        for field in fields.keys() & {"model", "fallback_model"}:
            fields[field]["enum"] = [*os.environ["MODELS"].split(","), None]
        # Which tools there are the installed CLI says, and which are on an admin, who tries those switches in the same run.
        fields["tools"]["maxItems"] = 0
        # Of MCP servers there are none here.
        fields["mcp_servers"]["maxItems"] = 0
    fields = schemas["CreateChat"]["properties"]
    # The form of an answer must itself be a JSON Schema, of an object.
    fields["output_schema"]["enum"] = [{"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "object"}, None]
    # A picture must be one, of the type it is said to be.
    fields = schemas["ImageBlock"]["properties"]["source"]["properties"]
    fields["media_type"]["enum"] = ["image/png"]
    fields["data"] = {"type": "string", "enum": [PICTURE]}

    for schema in schemas.values():
        fields = schema.get("properties", {})
        if schema.get("additionalProperties") is not False:
            continue
        # RFC 5321 in one pattern would be read by nobody.
        if "email" in fields:
            fields["email"] |= {"pattern": "^[a-z0-9]{1,20}@[a-z0-9]{1,20}[.]example$", "maxLength": 50}
        if "expires_at" in fields:
            fields["expires_at"]["enum"] = ["2126-11-24T00:00:00Z", None]
        if "allowed_ips" in fields:
            fields["allowed_ips"]["items"]["enum"] = ["127.0.0.0/8", "::1", "2001:db8::/32"]

    # Both need the password that is right until now, which nobody told the tool, and end other logins.
    for field in ("email", "password"):
        del schemas["UpdateProfile"]["properties"][field]

    # One must be before the other, and not too long before.
    today = datetime.now(UTC).replace(microsecond=0)
    days = {"from": (300, 30), "to": (20, 10)}
    for path in ("/api/usage", "/api/admin/usage"):
        for parameter in raw_schema["paths"][path]["get"]["parameters"]:
            if parameter["name"] in days:
                times = [today - timedelta(days=ago) for ago in days[parameter["name"]]]
                parameter["schema"]["enum"] = [time.isoformat().replace("+00:00", "Z") for time in times]


@schemathesis.hook
def before_call(context, case, kwargs):
    """Send no idempotency key twice: with another body that is refused, as it must be. What is no key stays.

    Leave NUL out of names, of which the contract cannot say how they look.
    And leave the own account as it is: in the place of its id in a path, another one is sent. And in the place of
    a text that looks like the path of a file to the contract alone, one that is.
    """
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and 1 <= len(key) <= 255:
        case.headers["Idempotency-Key"] = f"{key[:247]}{next(requests):08}"
    if isinstance(case.body, dict) and isinstance(case.body.get("metadata"), dict):
        case.body["metadata"] = {key.replace("\0", ""): value for key, value in case.body["metadata"].items()}
    for values in (case.path_parameters or {}, case.query or {}):
        for name in values.keys() & {"path", "cursor"}:
            if "/files" in case.path and isinstance(values[name], str) and looks_like_a_path(values[name]):
                values[name] = as_path(values[name])
    if case.method != "GET":
        for name, value in (case.path_parameters or {}).items():
            if value == os.environ["OWN_ID"]:
                case.path_parameters[name] = "user_" + "0" * 32
