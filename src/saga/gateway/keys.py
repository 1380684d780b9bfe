"""API keys and the tenants they stand for; only hashes of keys are kept.

The file is YAML: ``keys: [{tenant, hash, name?}]`` and ``admin: [{hash, name?}]``, where a hash is
``sha256:`` and 64 hexadecimal digits. ``name`` is for the operator.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from saga.gateway.document import Document, DocumentError, problems

TENANT_NAME: Final = r"^[A-Za-z0-9._-]{1,64}$"
TenantName = Annotated[str, Field(pattern=TENANT_NAME)]

_KEY = re.compile(r"saga-[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


class KeysError(ValueError):
    """A file of keys that cannot be used; one problem a line, and never a key."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path = path


def generate_key() -> tuple[str, str]:
    """A new key, 256 random bits, and the hash to keep of it."""
    key = f"saga-{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """The hash of a key, as files hold it."""
    # One fast, unsalted round is enough: it is slow hashes and salts that protect guessable
    # passwords, and nobody guesses 256 random bits. Each request pays for one of these.
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def checked_hash(text: str) -> str:
    """The same text; raises ValueError, without repeating it, if it is not a hash."""
    if _KEY.fullmatch(text):
        raise ValueError(f"is a key; put its hash there instead: {hash_key(text)}")
    if not _HASH.fullmatch(text):
        # No hash is offered: one of a word that a person chose can be undone by guessing.
        raise ValueError(
            "must be 'sha256:' and 64 lower-case hexadecimal digits, the hash of a generated key"
        )
    return text


Hash = Annotated[str, AfterValidator(checked_hash)]


class _AdminKey(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hash: Hash
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, values: Any) -> Any:
        key = values.get("key") if isinstance(values, dict) else None
        if isinstance(key, str) and _KEY.fullmatch(key):
            raise ValueError(f"holds a key; put its hash there instead: hash: {hash_key(key)}")
        return values


class _TenantKey(_AdminKey):
    tenant: TenantName


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keys: tuple[_TenantKey, ...] = ()
    admin: tuple[_AdminKey, ...] = ()

    @model_validator(mode="after")
    def _each_key_once(self) -> Self:
        hashes = [entry.hash for entry in (*self.keys, *self.admin)]
        twice = sorted({text for text in hashes if hashes.count(text) > 1})
        if twice:
            raise ValueError(f"hash {twice[0]} is given twice; a key stands for one tenant")
        return self


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Which key is whose. A ring without keys lets nobody in."""

    # A dictionary's comparison is not constant-time, and need not be: what it could tell about is
    # the hash of the key tried, and nobody can choose keys so that their hashes approach another.
    tenants: Mapping[str, str] = field(repr=False)
    """Tenant by hash."""
    admins: frozenset[str] = field(repr=False)
    """Hashes."""

    @classmethod
    def load(cls, path: Path, admin_hash: str | None = None) -> Self:
        """The keys of a file, and one more admin key if given. Raises ``KeysError``."""
        try:
            document = Document(path)
            file = _KeyFile.model_validate(document.values)
        except DocumentError as error:
            raise KeysError(path, str(error)) from None
        except ValidationError as error:
            raise KeysError(path, "\n".join(problems(error, _KeyFile, document.place))) from None
        tenants = {entry.hash: entry.tenant for entry in file.keys}
        admins = {entry.hash for entry in file.admin} | ({admin_hash} if admin_hash else set())
        both = sorted(admins & tenants.keys())
        if both:
            raise KeysError(
                path, f"{path}: hash {both[0]} is an admin's and a tenant's; make two keys"
            )
        return cls(tenants, frozenset(admins))

    def tenant_of(self, key: str) -> str | None:
        """The tenant that a key stands for; None for an admin key and for an unknown one."""
        return self.tenants.get(hash_key(key))

    def is_admin(self, key: str) -> bool:
        return hash_key(key) in self.admins


def credentials(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers (names in lower case): bearer token, or else ``x-api-key``.

    A request has one credential: where there is an ``authorization``, nothing else is looked at,
    even if it is no bearer token.
    """
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("x-api-key", "").strip() or None
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None
