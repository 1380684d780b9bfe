"""When sessions come back, learned from those that did: for requests that bring no hints."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from saga.core.cache import DEFAULT_REUSE
from saga.core.graph import AgentExecutionGraph
from saga.core.return_times import ReturnTimes
from saga.policies.tool_ttl import ToolTtl

MAX_SESSIONS = 65_536
"""Absent sessions that are remembered; the one away for longest then counts as ended."""
_US = 1e6


@dataclass(slots=True)
class _Absence:
    since: int
    tokens: int
    """Context at the end of its last step."""
    steps: int


class Habits:
    """One class of tools, as engines do not see which one is called.

    ``ttl`` gives the quantile and the bounds of what is kept for sessions; those that are away for
    longer than its maximum have ended. Without one, nothing is kept for any time.
    """

    def __init__(self, ttl: ToolTtl | None) -> None:
        self._ttl = ttl
        self._longest_us = int((ttl or ToolTtl()).max_ttl_s * _US)
        self._return_times = ReturnTimes()
        self._graph = AgentExecutionGraph()
        self._absent: OrderedDict[str, _Absence] = OrderedDict()
        """The longest absent first."""
        self._steps: dict[str, int] = {}
        """Of the sessions that are here."""

    def knows(self, session: str) -> bool:
        return session in self._absent or session in self._steps

    def arrived(self, session: str, prompt_tokens: int, now: int) -> None:
        """A request of the session is here."""
        absence = self._absent.pop(session, None)
        if absence is None:
            self._steps.setdefault(session, 0)
            return
        self._steps[session] = absence.steps
        self._return_times.observe(None, now - absence.since)
        new_tokens = max(0, prompt_tokens - absence.tokens)
        self._graph.observe_step(None, None, new_tokens=new_tokens)

    def left(self, session: str, tokens: int, now: int) -> None:
        """Its last request has finished, with so many tokens of context."""
        steps = self._steps.pop(session, 0) + 1
        self._absent[session] = _Absence(now, tokens, steps)
        self._end_those_away(now)

    def ended(self, session: str) -> None:
        """It will not come back."""
        absence = self._absent.pop(session, None)
        if absence is not None:
            self._graph.observe_end(None, absence.steps)

    def usual_gap_s(self) -> float | None:
        """For how long sessions are away, in the median; None as long as none came back."""
        usual = self._return_times.quantile(None, 0.5)
        return None if usual is None else usual / _US

    def hold(self, tokens: int, return_s: float | None) -> tuple[int, float]:
        """For how long, in microseconds, a session's KV should stay, and its chance of reuse.

        Twice as long as a client expects it to be away, else until nearly all sessions are back
        that come back; the longest time as long as none did.
        """
        score = self._graph.p_reuse(None, tokens)
        score = DEFAULT_REUSE if score is None else score
        if self._ttl is None:
            return 0, score
        if return_s is None:
            usual = self._return_times.quantile(None, self._ttl.percentile)
        else:
            usual = int(2 * return_s * _US)
        ttl_us = self._longest_us if usual is None else min(usual, self._longest_us)
        return max(ttl_us, int(self._ttl.floor_s * _US)), score

    def _end_those_away(self, now: int) -> None:
        while self._absent:
            session, absence = next(iter(self._absent.items()))
            if len(self._absent) <= MAX_SESSIONS and now - absence.since <= self._longest_us:
                return
            self.ended(session)
