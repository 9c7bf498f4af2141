"""Renders the OpenAPI document as one plain page, without scripts or external resources."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from typing import Any

import orjson

from frontend.api import route_paths as paths

# Colours and spacing of the playground, in its light and its dark scheme.
_STYLE = (
    ":root{color-scheme:light dark;--back:#f4f6f8;--panel:#fff;--line:#d9dfe6;--text:#161b21;--muted:#56616e;"
    "--accent:#0b6e4f}"
    "@media(prefers-color-scheme:dark){:root{--back:#0e1216;--panel:#161b21;--line:#2b343e;--text:#e5eaef;"
    "--muted:#9ba8b5;--accent:#41c795}}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1rem;background:var(--back);"
    "color:var(--text);overflow-wrap:break-word}"
    "a{color:var(--accent)}nav{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin-bottom:1.5rem}"
    "h1{margin:.5rem 0}h2{margin-top:2.5rem}h3{margin:1.75rem 0 .25rem}.muted{color:var(--muted)}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.875em}"
    "pre{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:1rem;overflow:auto}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.4rem 1rem .4rem 0;border-bottom:1px solid var(--line)}"
    "@media(max-width:40rem){thead{display:none}tr,td{display:block}td{border:0;padding:.1rem 0}"
    "tr{padding:.5rem 0;border-bottom:1px solid var(--line)}}"
)

# The page has one style and nothing else that a browser would load or run.
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Statuses that every operation can answer with, so they say nothing about one of them.
_COMMON_STATUSES = frozenset({"405", "421"})
_HUGE = 2**31 - 1


def docs_page(document: dict[str, Any]) -> str:
    """The page, as HTML. Links are relative, for proxies that add a path prefix."""
    info = document["info"]
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    title, version = escape(info["title"]), escape(info["version"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>API · {title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<nav><a href="./">Playground</a><a href="#fields">Request fields</a><a href="#operations">Operations</a>'
        f'<a href="openai/openapi.json">OpenAPI document</a></nav>'
        f'<h1>{title} <span class="muted">{version}</span></h1><p>{escape(info["description"])}</p>'
        f'{_example_request(document)}<h2 id="fields">Request fields of a completion</h2>{_fields(document)}'
        f'<h2 id="operations">Operations</h2><p class="muted">Every path also answers 405 for a method that it does '
        f"not have, and 421 for a host name that this server does not accept.</p>{''.join(operations)}</body></html>"
    )


def _example_request(document: dict[str, Any]) -> str:
    """A command to paste, and where its key comes from."""
    base_url = document["servers"][0]["url"]
    path = paths.COMPLETIONS[0]
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    key_line = "  -H \"Authorization: Bearer $OPENAI_API_KEY\" -H 'Content-Type: application/json' \\\n"
    words = (
        "<p>Requests need an API key, in the header <code>Authorization: Bearer KEY</code>. <code>make serve</code> "
        "and <code>triton-completions serve</code> print theirs, and store a generated one in "
        "<code>.run/api-key</code>: "
        '<code>export OPENAI_API_KEY="$(cat .run/api-key)"</code>.</p>'
    )
    if document["security"] == []:
        key_line, words = "  -H 'Content-Type: application/json' \\\n", "<p>Requests need no API key.</p>"
    json = orjson.dumps(body).decode().replace("'", "'\\''")
    return f"{words}<pre>{escape(f'curl {base_url}{path}')} \\\n{escape(key_line)}  -d '{escape(json)}'</pre>"


def _fields(document: dict[str, Any]) -> str:
    schema = document["components"]["schemas"]["CompletionRequest"]
    required = schema["required"]
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field, document))}"
        f"{', required' if name in required else ''}</td><td>{_text(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    ]
    head = "<thead><tr><th>field</th><th>type</th><th>meaning</th></tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _type(schema: dict[str, Any], document: dict[str, Any]) -> str:
    """The types of a schema in words, with the limits of numbers: "integer from 0 to 20". Null is left out."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _type(document["components"]["schemas"].get(name, {}), document)
    forms = schema.get("anyOf") or schema.get("oneOf") or []
    if forms:
        return " or ".join(dict.fromkeys(filter(None, (_type(form, document) for form in forms))))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(orjson.dumps(value).decode() for value in values)
    kinds = schema.get("type", "any")
    names = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"]
    return " or ".join(_named(kind, schema, document) for kind in names)


def _named(kind: str, schema: dict[str, Any], document: dict[str, Any]) -> str:
    if kind == "array":
        return f"list of {_plural(_type(schema.get('items', {}), document))}"
    if kind in ("integer", "number"):
        return kind + _range(schema)
    return kind


def _plural(types: str) -> str:
    """ "integer from 0" becomes "integers from 0": only the first word has a plural."""
    first, space, rest = types.partition(" ")
    return f"{first}s{space}{rest}"


def _range(schema: dict[str, Any]) -> str:
    """The limits in words; the last numbers of 32 and 64 bits are no limits of a field."""
    least, most = (
        None if value is None or abs(value) >= _HUGE else value
        for value in (schema.get("minimum"), schema.get("maximum"))
    )
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    if least is not None:
        return f" of at least {least:g}"
    return "" if most is None else f" of at most {most:g}"


def _text(description: str) -> str:
    """Escaped, with text between backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(description))


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(status)}</td><td>{escape(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
        if status not in _COMMON_STATUSES
    ]
    key = "" if operation.get("security") != [] else ' <span class="muted">no key needed</span>'
    return (
        f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3><p>{escape(operation['summary'])}{key}</p>"
        f'{_example(operation)}<div class="scroll"><table>{"".join(rows)}</table></div>'
    )


def _example(operation: dict[str, Any]) -> str:
    body = operation.get("requestBody")
    if body is None:
        return ""
    example = orjson.dumps(body["content"]["application/json"]["example"], option=orjson.OPT_INDENT_2).decode()
    return f"<pre>{escape(example)}</pre>"
