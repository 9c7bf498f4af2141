"""Names the tenant of a request to Triton: an opaque string, from which the name of a key or tenant cannot be guessed.

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
        self._names: dict[bytes, str] = {}  # by what they are derived from

    def of(self, key: ApiKey | None) -> str | None:
        """HMAC-SHA256 of the tenant's or else the key's name, as hexadecimal digits, cut to 128 bits.

        None without authentication.
        """
        if key is None:
            return None
        # A key without a tenant is one of its own, whatever other keys' tenants are called.
        name = key.name.encode() if key.tenant is None else b"\0tenant\0" + key.tenant.encode()
        tenant = self._names.get(name)
        if tenant is None:
            digest = hmac.digest(self._secret, name, "sha256")
            tenant = self._names[name] = digest.hex()[:_TENANT_CHARACTERS]
        return tenant
