"""What happened. A closed union; every event carries ``at`` in integer microseconds.

Hosts make events and pass them to ``Scheduler.handle`` in time order. Token counts may be estimates
where a host cannot know better (a gateway before the engine has answered).
"""

from __future__ import annotations

from saga.core.record import record


@record
class EngineUp:
    """An engine joined, or came back empty after ``EngineDown``, or ends its draining."""

    at: int
    engine: str
    kv_capacity_tokens: int
    max_num_seqs: int = 256
    prefill_us_per_token: float = 250.0
    """GPU time of one uncached prompt token; what service is charged by."""
    decode_us_per_token: float = 2_500.0
    """GPU time of one generated token at the engine's usual batch size."""
    retains: bool = True
    """Whether it can be asked to keep a session's KV."""
    prefetches: bool = True
    """Whether it can be asked to make a session's KV ready."""
    shared_kv: str | None = "cluster"
    """The same for all engines that can have each other's KV; None: it has only its own."""


@record
class EngineDown:
    """An engine and its KV are gone; what ran there is queued again."""

    at: int
    engine: str


@record
class EngineDraining:
    """An engine finishes what it runs and gets nothing new."""

    at: int
    engine: str


@record
class EngineReport:
    """An engine's own word on its KV memory in use, measured ``age_us`` before ``at``."""

    at: int
    engine: str
    kv_used_fraction: float
    age_us: int = 0


@record
class BlocksStored:
    """KV of a session became resident on an engine; ``num_tokens`` is its new total there.

    For a session that has no home yet it is KV from before it was opened, and makes the engine its
    home.
    """

    at: int
    engine: str
    session: str
    num_tokens: int


@record
class BlocksRemoved:
    """KV of a session was evicted; ``num_tokens`` is what remains there."""

    at: int
    engine: str
    session: str
    num_tokens: int


@record
class WorkflowSubmitted:
    """A workflow exists from now on; its TCT starts with its first request."""

    at: int
    workflow: str
    tenant: str
    agent_type: str = "agent"
    weight: float = 1.0
    """The tenant's weight; the last one told counts."""
    deadline: int | None = None
    """Absolute time; None lets policies derive one."""
    mean_steps: float | None = None
    """Declared mean number of steps of this agent type, if the client declares its graph."""
    priority: float = 1.0
    """Above 0: how much sooner it should end than others of its tenant that are like it."""


@record
class WorkflowDone:
    """The last response was delivered; everything the scheduler holds for it goes."""

    at: int
    workflow: str


@record
class SessionOpened:
    at: int
    session: str
    workflow: str
    parent: str | None = None


@record
class SessionClosed:
    """No further request of this session will come."""

    at: int
    session: str


@record
class RequestArrived:
    at: int
    request: str
    session: str
    prompt_tokens: int
    expected_output_tokens: int | None = None
    """None: the agent type's mean is used."""
    engine: str | None = None
    """The only engine that can serve it, because it holds state that the request refers to."""


@record
class RequestStarted:
    """The engine accepted the request into its batch: the session's home is there from now on."""

    at: int
    request: str
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""


@record
class RequestFirstToken:
    at: int
    request: str


@record
class RequestFinished:
    at: int
    request: str
    output_tokens: int
    cached_tokens: int | None = None
    """Corrects what ``RequestStarted`` said, where only the end of a response tells."""
    tool: str | None = None
    """The tool that the response calls; None when it calls none."""


@record
class RequestFailed:
    """The engine could not serve the request; ``retry`` puts it back into the queue."""

    at: int
    request: str
    reason: str
    retry: bool = False


@record
class RequestCancelled:
    """The client went away."""

    at: int
    request: str


@record
class ToolStarted:
    """A client that tells: the tool after the session's last step runs from now on."""

    at: int
    session: str
    tool: str


@record
class ToolFinished:
    at: int
    session: str


@record
class Tick:
    """A wake-up that was asked for with ``WakeAt``, or any other reason to look again."""

    at: int


Event = (
    EngineUp
    | EngineDown
    | EngineDraining
    | EngineReport
    | BlocksStored
    | BlocksRemoved
    | WorkflowSubmitted
    | WorkflowDone
    | SessionOpened
    | SessionClosed
    | RequestArrived
    | RequestStarted
    | RequestFirstToken
    | RequestFinished
    | RequestFailed
    | RequestCancelled
    | ToolStarted
    | ToolFinished
    | Tick
)
