"""Names the tenant of a request to Triton: an opaque string for each API key, from which its name cannot be guessed.

The engine keeps the KV cache of tenants apart and lets them take turns in its queue. A client of Triton that knows a
tenant's string could use its cache, so it depends on a secret.
"""

from __future__ import annotations

import hmac

from frontend.api_key import ApiKey

_TENANT_CHARACTERS = 32


class Tenants:
    """Names tenants with one secret, which all front ends must share that should share a tenant's cache and queue."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._names: dict[str, str] = {}  # by name of the key

    def of(self, key: ApiKey | None) -> str | None:
        """HMAC-SHA256 of the key's name, as hexadecimal digits, cut to 128 bits; None without authentication."""
        if key is None:
            return None
        tenant = self._names.get(key.name)
        if tenant is None:
            digest = hmac.digest(self._secret, key.name.encode(), "sha256")
            tenant = self._names[key.name] = digest.hex()[:_TENANT_CHARACTERS]
        return tenant
