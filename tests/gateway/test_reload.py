"""Reloading: all or nothing, the last good one stays, and what needs a restart is said."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from saga.gateway.keys import generate_key
from saga.gateway.reload import RESTART_ONLY, Loaded, Reloader, load
from saga.gateway.settings import Settings


@dataclass
class Gateway:
    """What a reloader tells, noted down; its files are in ``folder``."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    applied: list[Loaded] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "saga.yaml"

    @property
    def keys(self) -> Path:
        return self.folder / "keys.yaml"

    def started(self, text: str, poll_s: float = 1.0) -> Reloader:
        self.write(text)
        return Reloader(
            self.file,
            self.load,
            self.applied.append,
            current=self.load(),
            on_error=lambda error: self.errors.append(error.replace(f"{self.folder}/", "")),
            poll_s=poll_s,
        )

    def load(self) -> Loaded:
        return load(self.file, self.environ, {})

    def write(self, text: str) -> None:
        self.file.write_text(text.replace("KEYS", str(self.keys)), encoding="utf-8")

    def write_keys(self, *tenants: str) -> list[str]:
        """A new key for each."""
        made = [generate_key() for _ in tenants]
        entries = (
            f"- {{tenant: {t}, hash: '{h}'}}\n" for t, (_, h) in zip(tenants, made, strict=True)
        )
        self.keys.write_text("keys:\n" + "".join(entries), encoding="utf-8")
        return [key for key, _ in made]


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def look_twice(reloader: Reloader) -> None:
    """A file is read when it has been still for one look."""
    reloader.poll()
    reloader.poll()


def test_a_change_is_applied_once(gateway: Gateway) -> None:
    reloader = gateway.started("queue: {max_requests: 1}")
    look_twice(reloader)
    assert gateway.applied == []
    gateway.write("queue: {max_requests: 22}")
    look_twice(reloader)
    look_twice(reloader)
    assert [loaded.settings.queue.max_requests for loaded in gateway.applied] == [22]
    assert reloader.current is gateway.applied[0]
    assert gateway.errors == []


def test_a_file_being_written_is_not_read_before_it_is_still(gateway: Gateway) -> None:
    reloader = gateway.started("queue: {max_requests: 1}")
    for text in ("", "queue: {max", "queue: {max_requests: 22}"):
        gateway.write(text)
        reloader.poll()
        assert (gateway.applied, gateway.errors) == ([], [])
    reloader.poll()
    assert [loaded.settings.queue.max_requests for loaded in gateway.applied] == [22]


def test_a_change_while_reading_is_seen_the_next_time(gateway: Gateway) -> None:
    gateway.write("queue: {max_requests: 1}")

    def read_and_edit() -> Loaded:
        loaded = gateway.load()
        gateway.write("queue: {max_requests: 333}")
        return loaded

    reloader = Reloader(
        gateway.file,
        read_and_edit,
        gateway.applied.append,
        current=gateway.load(),
        on_error=gateway.errors.append,
    )
    gateway.write("queue: {max_requests: 22}")
    look_twice(reloader)
    look_twice(reloader)
    assert [loaded.settings.queue.max_requests for loaded in gateway.applied] == [22, 333]


def test_a_broken_file_changes_nothing_and_is_reported_once(gateway: Gateway) -> None:
    reloader = gateway.started("queue: {max_requests: 1}")
    before = reloader.current
    gateway.write("queue: {max_requests: 22, max_wait_s: -1}\nretries: {max: -1}")
    look_twice(reloader)
    look_twice(reloader)
    assert gateway.errors == [
        "saga.yaml:1: queue.max_wait_s: is -1, must be greater than 0\n"
        "saga.yaml:2: retries.max: is -1, must be greater than or equal to 0"
    ]
    assert gateway.applied == []
    assert reloader.current is before
    gateway.write("queue: {max_requests: 22}")
    look_twice(reloader)
    assert reloader.current.settings.queue.max_requests == 22


def test_a_file_that_goes_and_comes_back(gateway: Gateway) -> None:
    reloader = gateway.started("queue: {max_requests: 1}")
    gateway.file.unlink()
    look_twice(reloader)
    look_twice(reloader)
    assert gateway.errors == ["saga.yaml: cannot be read: No such file or directory"]
    assert gateway.applied == []
    gateway.write("queue: {max_requests: 22}")
    look_twice(reloader)
    assert reloader.current.settings.queue.max_requests == 22


def test_a_file_replaced_through_a_symbolic_link(gateway: Gateway) -> None:
    """As Kubernetes does; same size, and here the same time."""
    for number in (1, 2):
        version = gateway.folder / f"v{number}.yaml"
        version.write_text(f"queue: {{max_requests: {number}}}", encoding="utf-8")
        os.utime(version, (1, 1))
    gateway.file.symlink_to("v1.yaml")
    reloader = Reloader(
        gateway.file,
        gateway.load,
        gateway.applied.append,
        current=gateway.load(),
        on_error=gateway.errors.append,
    )
    gateway.file.unlink()
    gateway.file.symlink_to("v2.yaml")
    look_twice(reloader)
    assert reloader.current.settings.queue.max_requests == 2


def test_variables_still_win_over_a_changed_file(gateway: Gateway) -> None:
    gateway.environ["SAGA_QUEUE__MAX_REQUESTS"] = "5"
    reloader = gateway.started("queue: {max_requests: 1}")
    gateway.write("queue: {max_requests: 22, max_wait_s: 3}")
    look_twice(reloader)
    queue = reloader.current.settings.queue
    assert (queue.max_requests, queue.max_wait_s) == (5, 3.0)


# ---- what needs a restart


def test_what_needs_a_restart_is_said_and_the_rest_applies(gateway: Gateway) -> None:
    reloader = gateway.started("server: {port: 1}")
    gateway.write(
        "server: {port: 2, host: localhost, drain_s: 5}\nrecord: {file: run.jsonl}\npreset: vllm"
    )
    look_twice(reloader)
    assert gateway.errors == [
        "preset: vllm needs a restart; until then saga\n"
        "server.host: localhost needs a restart; until then 127.0.0.1\n"
        "server.port: 2 needs a restart; until then 1\n"
        "record.file: run.jsonl needs a restart; until then None"
    ]
    settings = reloader.current.settings
    assert (settings.server.port, settings.server.host) == (1, "127.0.0.1")
    assert settings.record.file is None
    assert (settings.server.drain_s, settings.preset) == (5.0, "saga")
    assert gateway.applied == [reloader.current]


def test_nothing_is_applied_if_only_what_needs_a_restart_changed(gateway: Gateway) -> None:
    reloader = gateway.started("server: {port: 1}")
    gateway.write("server: {port: 22}")
    look_twice(reloader)
    assert len(gateway.errors) == 1
    assert gateway.applied == []


def test_keys_cannot_be_given_up_while_other_machines_can_reach_the_gateway(
    gateway: Gateway,
) -> None:
    """The new file is sound by itself; with the host that stays it would open the door to all."""
    gateway.write_keys("acme")
    reloader = gateway.started("server: {host: 0.0.0.0}\nauth: {keys_file: KEYS}")
    gateway.write("server: {host: 127.0.0.1}")
    look_twice(reloader)
    (error,) = gateway.errors
    assert error.startswith("until a restart: server.host: other machines can reach 0.0.0.0")
    assert gateway.applied == []
    assert reloader.current.keys is not None


def test_every_setting_that_needs_a_restart_exists() -> None:
    for name in RESTART_ONLY:
        there: object = Settings()
        for part in name.split("."):
            there = getattr(there, part)


# ---- keys


def test_changed_keys_are_taken_over(gateway: Gateway) -> None:
    (old,) = gateway.write_keys("acme")
    reloader = gateway.started("auth: {keys_file: KEYS}")
    (new, other) = gateway.write_keys("acme", "bee")
    look_twice(reloader)
    keys = reloader.current.keys
    assert keys is not None
    assert [keys.tenant_of(key) for key in (old, new, other)] == [None, "acme", "bee"]
    assert gateway.applied == [reloader.current]


def test_broken_keys_leave_the_last_good_ones(gateway: Gateway) -> None:
    (key,) = gateway.write_keys("acme")
    reloader = gateway.started("auth: {keys_file: KEYS}")
    gateway.keys.write_text("keys: [{tenant: acme, hash: hunter2}]", encoding="utf-8")
    look_twice(reloader)
    (error,) = gateway.errors
    assert error.startswith("keys.yaml:1: keys.0.hash: ")
    assert reloader.current.keys is not None
    assert reloader.current.keys.tenant_of(key) == "acme"


def test_keys_that_come_after_the_settings_that_name_them(gateway: Gateway) -> None:
    reloader = gateway.started("")
    assert reloader.current.keys is None
    gateway.write("auth: {keys_file: KEYS}")
    look_twice(reloader)
    look_twice(reloader)
    assert gateway.errors == ["keys.yaml: cannot be read: No such file or directory"]
    (key,) = gateway.write_keys("acme")
    look_twice(reloader)
    assert reloader.current.keys is not None
    assert reloader.current.keys.tenant_of(key) == "acme"
    (key,) = gateway.write_keys("bee")
    look_twice(reloader)
    assert reloader.current.keys.tenant_of(key) == "bee"


def test_the_admin_key_of_the_settings_is_in_the_ring(gateway: Gateway) -> None:
    admin, digest = generate_key()
    gateway.write_keys("acme")
    gateway.write(f"auth: {{keys_file: KEYS, admin_key_hash: '{digest}'}}")
    keys = gateway.load().keys
    assert keys is not None
    assert keys.is_admin(admin)


# ---- running


async def until_applied(gateway: Gateway) -> None:
    async with asyncio.timeout(10):
        while not gateway.applied:
            await asyncio.sleep(0.001)


def test_it_watches_while_it_runs(gateway: Gateway) -> None:
    async def scenario() -> None:
        reloader = gateway.started("", poll_s=0.001)
        task = asyncio.create_task(reloader.run())
        gateway.write("queue: {max_requests: 22}")
        await until_applied(gateway)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert gateway.applied[0].settings.queue.max_requests == 22


def test_a_signal_reloads_at_once_and_ends_with_the_reloader(gateway: Gateway) -> None:
    before = signal.getsignal(signal.SIGHUP)

    async def scenario() -> None:
        reloader = gateway.started("", poll_s=3_600)
        task = asyncio.create_task(reloader.run())
        await asyncio.sleep(0)
        gateway.write("queue: {max_requests: 22}")
        os.kill(os.getpid(), signal.SIGHUP)
        await until_applied(gateway)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert signal.getsignal(signal.SIGHUP) == before


def test_where_signals_do_not_arrive_files_are_watched_all_the_same(gateway: Gateway) -> None:
    async def scenario() -> None:
        reloader = gateway.started("", poll_s=0.001)
        task = asyncio.create_task(reloader.run())
        gateway.write("queue: {max_requests: 22}")
        await until_applied(gateway)
        task.cancel()

    async def elsewhere() -> None:
        await asyncio.to_thread(asyncio.run, scenario())

    asyncio.run(elsewhere())
    assert len(gateway.applied) == 1
