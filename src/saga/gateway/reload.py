"""New settings and keys without a restart: all of them are valid, or nothing changes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from saga.gateway.document import problems
from saga.gateway.keys import KeyRing, KeysError
from saga.gateway.settings import Settings, SettingsError, load_settings

RESTART_ONLY: Final = (
    *("preset", "server.host", "server.port", "record.file"),
    *("sessions.max_sessions", "sessions.prefetch_mib"),
    *("engines.urls", "engines.file", "engines.dns", "engines.api_key", "engines.scrape_s"),
)
"""What a running gateway does not change. (Engines come and go with the content of
``engines.file``, with DNS, and by ``/v1/saga/engines``.)"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the gateway runs by."""

    settings: Settings
    keys: KeyRing | None
    """None: no file of keys is configured, and nobody is asked for one."""


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Loaded:
    """Settings and the keys they name. Raises ``SettingsError`` or ``KeysError``."""
    settings = load_settings(path, environ, flags)
    auth = settings.auth
    if auth.keys_file is None:
        return Loaded(settings, None)
    admin = auth.admin_key_hash
    return Loaded(
        settings, KeyRing.load(auth.keys_file, admin.get_secret_value() if admin else None)
    )


_Stamps = dict[Path, tuple[int, int, int] | None]


class Reloader:
    """Watches the settings file and the file of keys, and SIGHUP.

    ``load`` reads everything anew; ``apply`` takes over what is valid and differs, and must not
    fail. ``on_error`` is told in one or more lines what is wrong, while the last good settings
    stay, and which changes wait for a restart, while the others apply.
    """

    def __init__(
        self,
        path: Path | None,
        load: Callable[[], Loaded],
        apply: Callable[[Loaded], None],
        *,
        current: Loaded,
        on_error: Callable[[str], None],
        poll_s: float = 1.0,
    ) -> None:
        self._path = path
        self._load = load
        self._apply = apply
        self._on_error = on_error
        self._poll_s = poll_s
        self.current = current
        self._failed: Path | None = None
        """A file of keys that settings not taken over name; when it is mended, they may be."""
        self._seen = self._stamps()
        self._changed = False

    async def run(self) -> None:
        """Watch until cancelled."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        # Signals reach only the main thread's loop; elsewhere the files are still watched.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGHUP, asked.set)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asked.wait(), self._poll_s)
                if asked.is_set():
                    asked.clear()
                    self.reload()
                else:
                    self.poll()
        finally:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(signal.SIGHUP)

    def poll(self) -> None:
        """Look at the files once; reload if they changed and have been still since the last look.

        A file that is being written is not read half: an empty one would be valid.
        """
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen, self._changed = stamps, True
        elif self._changed:
            self.reload()

    def reload(self) -> None:
        """Read everything now."""
        before, self._changed = self._stamps(), False
        self._take_over()
        # Of files watched already, as they were before: what changes meanwhile is seen next time.
        self._seen = {file: before.get(file, stamp) for file, stamp in self._stamps().items()}

    def _take_over(self) -> None:
        self._failed = None
        try:
            wanted = self._load()
            settings, waiting = _pinned(self.current.settings, wanted.settings)
        except (SettingsError, KeysError) as error:
            self._failed = error.path if isinstance(error, KeysError) else None
            self._on_error(str(error))
            return
        if waiting:
            self._on_error("\n".join(waiting))
        loaded = Loaded(settings, wanted.keys)
        if loaded != self.current:
            self.current = loaded
            self._apply(loaded)

    def _stamps(self) -> _Stamps:
        files = (self._path, self.current.settings.auth.keys_file, self._failed)
        return {file: _stamp(file) for file in files if file is not None}


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file does, a replaced symbolic link included; None: not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _pinned(running: Settings, wanted: Settings) -> tuple[Settings, list[str]]:
    """The wanted settings with what cannot change as it is, and a line for each such thing."""
    values = wanted.model_dump()
    waiting = []
    before = running.model_dump()
    for name in RESTART_ONLY:
        *sections, key = name.split(".")
        there, here = before, values
        for section in sections:
            there, here = there[section], here[section]
        if here[key] != there[key]:
            waiting.append(f"{name}: {here[key]} needs a restart; until then {there[key]}")
            here[key] = there[key]
    try:
        # Checked again: keys given up together with a host that stays would open it to all.
        return Settings.model_validate(values), waiting
    except ValidationError as error:
        found = problems(error, Settings, lambda _: "until a restart")
        raise SettingsError(found) from None
