"""A gateway that asks for keys, and everybody's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateway.live import Live, gateway

from saga.gateway.keys import generate_key

Headers = dict[str, str]


@dataclass(frozen=True)
class Keyed:
    live: Live
    tenants: dict[str, Headers]
    """What each tenant sends to say who it is."""
    admin: Headers


@contextmanager
def keyed(folder: Path, *tenants: str, **settings: Any) -> Iterator[Keyed]:
    """A gateway with two engines, a key for each tenant and one for administration."""
    admin_key, admin_hash = generate_key()
    lines, headers = [], {}
    for tenant in tenants:
        key, hashed = generate_key()
        lines.append(f"  - {{tenant: {tenant}, hash: '{hashed}'}}")
        headers[tenant] = {"authorization": f"Bearer {key}"}
    file = folder / "keys.yaml"
    file.write_text("\n".join(["keys:", *lines, f"admin: [{{hash: '{admin_hash}'}}]", ""]))
    settings = {"auth.keys_file": str(file), **settings}
    with gateway(engines=2, engine_options={"speed": 500.0}, settings=settings) as live:
        yield Keyed(live, headers, {"x-api-key": admin_key})
        live.check_nothing_is_lost()
