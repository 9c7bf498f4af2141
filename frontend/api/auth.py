"""Authenticates requests by API keys: hashes, from a setting and from a file that is reloaded when it changes."""

from __future__ import annotations

import hashlib
import hmac
import time
from datetime import datetime, timezone
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from frontend.api_key import ApiKey
from frontend.settings import FrontendSettings, HashedKey
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

log = structlog.get_logger(__name__)

_RELOAD_CHECK_S = 1.0
_DEFAULT_KEY_NAME = "default"
_KEY_LIST = TypeAdapter(list[ApiKey])


class KeysFileError(ValueError):
    """API_KEYS_FILE is missing or invalid at start."""


class ApiKeyStore:
    """The valid API keys. Raises KeysFileError if API_KEYS_FILE cannot be read at start."""

    def __init__(self, settings: FrontendSettings) -> None:
        self._is_open = settings.auth == "off"
        self._fixed = _fixed_keys(settings.api_key)
        self._file = settings.api_keys_file
        self._listed: list[ApiKey] = []
        self._stamp: tuple[int, int, int] | None = None
        self._next_check_s = 0.0
        if self._file is not None:
            try:
                self._stamp, self._listed = _stamp(self._file), _read(self._file)
            except (OSError, ValueError) as error:
                raise KeysFileError(f"API_KEYS_FILE cannot be used: {_reason(error)}") from None

    def authenticate(self, header: bytes | None) -> ApiKey | None:
        """The key of an Authorization header; None if authentication is off.

        Raises PipelineError (401) if the header is missing, or its key unknown or expired.
        """
        if self._is_open:
            return None
        self._reload_if_changed()
        scheme, _, token = (header or b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise _unauthorized("Missing API key. Send it in the header `Authorization: Bearer <key>`.")
        key = self._find(hashlib.sha256(token.strip()).hexdigest())
        if key is None or key.is_expired(datetime.now(timezone.utc)):
            raise _unauthorized("Invalid API key: it is unknown or has expired.")
        return key

    def _find(self, digest: str) -> ApiKey | None:
        found = None
        # Always compares with every key, so that the time taken reveals nothing about any of them.
        for key in (*self._fixed, *self._listed):
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _reload_if_changed(self) -> None:
        now_s = time.monotonic()
        if self._file is None or now_s < self._next_check_s:
            return
        self._next_check_s = now_s + _RELOAD_CHECK_S
        try:
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._listed, self._stamp = _read(self._file), stamp
                log.info("api_keys_reloaded", keys=len(self._listed))
        except (OSError, ValueError) as error:
            # The file may be half-written or missing for a moment: the previous keys stay valid.
            log.error("api_keys_not_reloaded", reason=_reason(error))


def _fixed_keys(key: HashedKey | None) -> list[ApiKey]:
    return [] if key is None else [ApiKey(name=_DEFAULT_KEY_NAME, sha256=key.sha256)]


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> list[ApiKey]:
    keys = _KEY_LIST.validate_json(path.read_bytes())
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two keys have the same name")
    return keys


def _reason(error: Exception) -> str:
    # A ValidationError prints its input, which may be a plain key in the place of its hash.
    if isinstance(error, ValidationError):
        return "; ".join(f"{item['loc']}: {item['msg']}" for item in error.errors(include_input=False))
    return str(error)


def _unauthorized(message: str) -> PipelineError:
    return PipelineError(ErrorCode.INVALID_API_KEY, message)
