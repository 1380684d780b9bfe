"""Names of sessions, in formats that tell sessions apart by their names only."""

from __future__ import annotations

from saga.traces.script import WorkflowScript


class SessionNames:
    """The root session has the name of its workflow, which so is read again."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, script: WorkflowScript) -> list[str]:
        """In the order of the sessions. Raises ValueError if one was used before."""
        names = [
            f"{script.id}/{number}" if number else script.id
            for number in range(len(script.sessions))
        ]
        for name in names:
            if name in self._used:
                raise ValueError(f"session name {name!r} of workflow {script.id!r} is used twice")
            self._used.add(name)
        return names
