"""Authenticates requests by API keys: hashes, from a setting and from a file that is read again when it changes.

A key that leaves the file is revoked within two checks, in every worker. A file that is missing in two checks in a row
revokes all of its keys; one check is not enough, because some programs replace a file by removing it first. A file that
cannot be read, or is invalid, keeps its previous keys for `api_keys_grace_s`: a typo must not end every stream at once,
but neither may it keep a key valid that its owner believes to have removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import structlog

from frontend.api_key import ApiKey
from frontend.keys.keys_file import FileStamp, KeysFileError, is_public, read_keys, reason_of, stamp_of
from frontend.settings import FrontendSettings, HashedKey
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 0.5
_DEFAULT_KEY_NAME = "default"
_DEFAULT_PRIORITY = 0  # of requests without a priority


class ApiKeyStore:
    """The valid API keys. Raises KeysFileError if API_KEYS_FILE cannot be used at start.

    `check` reads the file if it has changed; `watch` calls it for as long as the app runs.
    """

    def __init__(self, settings: FrontendSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_open = settings.auth == "off"
        self._fixed = _fixed_keys(settings.api_key)
        self._file = settings.api_keys_file
        self._grace_s = settings.api_keys_grace_s
        self._clock = clock
        self._listed: list[ApiKey] = []
        self._by_digest: dict[str, ApiKey] = {}
        self._names = 0  # of valid keys
        self._stamp: FileStamp | None = None
        self._problem: str | None = None
        self._last_read_s = clock()  # or found unchanged
        self._was_missing = False
        if self._file is not None:
            try:
                self._stamp, self._listed = stamp_of(self._file), read_keys(self._file)
            except (OSError, ValueError) as error:
                raise KeysFileError(f"API_KEYS_FILE cannot be used: {reason_of(error)}") from None
        self._set_listed(self._listed)

    @property
    def has_several(self) -> bool:
        """Whether more than one key is valid, so that one client can be in the way of another."""
        return self._names > 1

    def authenticate(self, header: bytes | None) -> ApiKey | None:
        """The key of an Authorization header; None if authentication is off.

        Raises PipelineError (401) if the header is missing, or its key unknown or expired.
        """
        if self._is_open:
            return None
        scheme, _, token = (header or b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise _unauthorized("Missing API key. Send it in the header `Authorization: Bearer <key>`.")
        # The time of this look-up may reveal how a hash begins, but a client cannot choose a key by its hash.
        key = self._by_digest.get(hashlib.sha256(token.strip()).hexdigest())
        if key is None or key.is_expired(_now()):
            raise _unauthorized("Invalid API key: it is unknown or has expired.")
        return key

    def is_valid(self, key: ApiKey | None) -> bool:
        """Whether a key that was valid still is: it is in the file, perhaps with other limits, and has not expired."""
        if key is None or self._is_open:
            return True
        current = self._by_digest.get(key.sha256)
        return current is not None and not current.is_expired(_now())

    def require_valid(self, key: ApiKey | None) -> None:
        """Raises PipelineError (401) if the key of a request was revoked while its body was on its way."""
        if not self.is_valid(key):
            raise revoked_error()

    def check(self) -> None:
        """Reads the file if it has changed. A file that cannot be used revokes its keys in the end."""
        if self._file is None:
            return
        try:
            stamp = stamp_of(self._file)
            if stamp != self._stamp:
                self._set_listed(read_keys(self._file))
                self._stamp = stamp
                log.info("api_keys_reloaded", keys=len(self._listed))
                self._warn_if_public()
        except FileNotFoundError:
            self._report("API_KEYS_FILE does not exist", valid_for_s=CHECK_INTERVAL_S)
            if self._was_missing:
                self._revoke_all()
            self._was_missing = True
        except (OSError, ValueError) as error:
            self._was_missing = False
            self._report(reason_of(error), valid_for_s=self._grace_s)
            self._revoke_if_stale()
        else:
            self._was_missing = False
            self._problem = None
            self._last_read_s = self._clock()

    async def watch(self, on_check: Callable[[], None]) -> None:
        """Checks the file in a thread, twice a second, and calls `on_check` after each check.

        A file system that does not answer has the same effect as a file that cannot be read.
        """
        self._warn_if_public()
        # A thread of its own: those of asyncio.to_thread may all be busy with large bodies.
        executor = ThreadPoolExecutor(1, thread_name_prefix="api-keys")
        checking: asyncio.Future[None] | None = None
        try:
            while True:
                if self._file is not None:
                    checking = checking or asyncio.get_running_loop().run_in_executor(executor, self.check)
                    checking = await _unless_done(checking)
                    self._revoke_if_stale()
                try:
                    on_check()
                except Exception:
                    log.exception("revocation_failed")  # the next check tries again
                await asyncio.sleep(CHECK_INTERVAL_S)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _set_listed(self, keys: list[ApiKey]) -> None:
        self._listed = keys
        valid = [*self._fixed, *keys]
        if len(valid) > 1:
            valid = [_without_precedence(key) for key in valid]
        self._by_digest = {version.sha256: version for key in valid for version in key.versions()}
        self._names = len({key.name for key in self._by_digest.values()})

    def _revoke_if_stale(self) -> None:
        if self._file is not None and self._clock() - self._last_read_s > self._grace_s:
            self._revoke_all()

    def _revoke_all(self) -> None:
        self._stamp = None
        if self._listed:
            log.error("api_keys_revoked", keys=len(self._listed), reason=self._problem)
            self._set_listed([])

    def _report(self, problem: str, *, valid_for_s: float) -> None:
        if problem != self._problem:
            self._problem = problem
            log.error("api_keys_not_reloaded", reason=problem, previous_keys_valid_for_s=valid_for_s)

    def _warn_if_public(self) -> None:
        if self._stamp is not None and is_public(self._stamp):
            log.warning("api_keys_file_is_public", advice=f"all users can read its hashes; run: chmod o-r {self._file}")


async def _unless_done(checking: asyncio.Future[None]) -> asyncio.Future[None] | None:
    """Waits for a check, for as long as one may take. Returns it if it takes longer."""
    await asyncio.wait({checking}, timeout=CHECK_INTERVAL_S)
    if not checking.done():
        return checking
    if (bug := checking.exception()) is not None:
        log.error("api_keys_check_failed", exc_info=bug)
    return None


def revoked_error() -> PipelineError:
    """The error of a request whose key has been revoked since it began."""
    return _unauthorized("This API key has been revoked or has expired since the request began.")


def _fixed_keys(key: HashedKey | None) -> list[ApiKey]:
    return [] if key is None else [ApiKey(name=_DEFAULT_KEY_NAME, sha256=key.sha256)]


def _without_precedence(key: ApiKey) -> ApiKey:
    """Returns a key that may not go before other keys, unless its entry says so: priority orders across keys."""
    return key if key.best_priority is not None else key.model_copy(update={"best_priority": _DEFAULT_PRIORITY})


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _unauthorized(message: str) -> PipelineError:
    return PipelineError(ErrorCode.INVALID_API_KEY, message)
