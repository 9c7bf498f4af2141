"""Formats of strings, as patterns. Formats without one are annotations, as the standard has it, and ignored."""

from __future__ import annotations

from collections.abc import Mapping

# llguidance's own (parser/src/json/formats.rs at c75b0d90). Its dates, times and durations have a 60th second,
# February 29 in each year and any number of digits, which few parsers accept: those are patterns here.
_OF_LLGUIDANCE = frozenset({"email", "hostname", "ipv4", "ipv6", "uuid", "uri"})

_DATE = (
    r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
)
_ZONE = r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,6}})?{_ZONE}"
_COUNT = "[0-9]{1,4}"  # more overflow a day count somewhere
_DATE_PART = rf"(?:{_COUNT}Y(?:{_COUNT}M(?:{_COUNT}D)?)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"
_TIME_PART = rf"(?:{_COUNT}H(?:{_COUNT}M(?:{_COUNT}S)?)?|{_COUNT}M(?:{_COUNT}S)?|{_COUNT}S)"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_IPV4_NETWORK = rf"{_BYTE}\.0\.0\.0/8|{_BYTE}\.{_BYTE}\.0\.0/16|{_BYTE}\.{_BYTE}\.{_BYTE}\.0/24|{_IPV4}(?:/32)?"
_GROUP = r"[0-9a-fA-F]{1,4}"
_IPV6 = (
    rf"(?:(?:{_GROUP}:){{7}}{_GROUP}|(?:{_GROUP}:){{1,3}}:{_GROUP}(?::{_GROUP}){{0,2}}"
    rf"|::(?:{_GROUP}(?::{_GROUP}){{0,5}})?)"
)
_IPV6_NETWORK = rf"(?:{_GROUP}:){{2}}:/32|(?:{_GROUP}:){{3}}:/48|(?:{_GROUP}:){{4}}:/64|{_IPV6}(?:/128)?"
_IPV4_INTERFACE = rf"{_IPV4}(?:/(?:[12]?[0-9]|3[0-2]))?"
_IPV6_INTERFACE = rf"{_IPV6}(?:/(?:[1-9]?[0-9]|1[01][0-9]|12[0-8]))?"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL})*"
_EMAIL = rf"[a-zA-Z0-9_+]+(?:[.-][a-zA-Z0-9_+]+)*@(?:{_LABEL}\.)+[a-zA-Z]{{2,18}}"
_HEX = "[0-9a-fA-F]"


def _uuid(version: str) -> str:
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}"


# Of the standard, Pydantic and OpenAPI.
_PATTERNS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"(?:{_DATE})T{_TIME}",
    "duration": rf"P(?:{_DATE_PART}(?:T{_TIME_PART})?|T{_TIME_PART}|{_COUNT}W)",
    "email": _EMAIL,
    "hostname": _HOSTNAME,
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    **{f"uuid{version}": _uuid(str(version)) for version in range(1, 9)},
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": rf"{_IPV4}|{_IPV6}",
    "ipv4network": _IPV4_NETWORK,
    "ipv6network": _IPV6_NETWORK,
    "ipvanynetwork": rf"{_IPV4_NETWORK}|{_IPV6_NETWORK}",
    "ipv4interface": _IPV4_INTERFACE,
    "ipv6interface": _IPV6_INTERFACE,
    "ipvanyinterface": rf"{_IPV4_INTERFACE}|{_IPV6_INTERFACE}",
    "base64": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?",
    "base64url": r"(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-][AQgw]==|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]=)?",
    "color": r"#[0-9a-fA-F]{6}",
}


def is_followed_by_llguidance(name: str) -> bool:
    """Whether the format stays in the schema."""
    return name in _OF_LLGUIDANCE


def pattern_of(name: str) -> str | None:
    """Returns an anchored pattern of a format; None if the format is an annotation."""
    pattern = _PATTERNS.get(name)
    return None if pattern is None else f"^(?:{pattern})$"
