"""Teams of agents: which one the code that runs is part of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from saga.adapters.groups import Groups


class Agent:
    def __init__(self, name: str) -> None:
        self.name = name


class Team:
    """Each of its members says its workflow; a member may be a team."""

    def __init__(self, *members: Any) -> None:
        self.members = members


async def stream(team: Team, groups: Groups) -> AsyncIterator[Any]:
    for member in team.members:
        if isinstance(member, Team):
            async for workflow in groups.around(stream)(member, groups):
                yield workflow
        else:
            task = asyncio.create_task(identified(groups, member))
            yield await task


async def identified(groups: Groups, agent: Any) -> Any:
    return groups.identity(agent)


def run(team: Team, groups: Groups) -> list[Any]:
    async def scenario() -> list[Any]:
        return [one async for one in groups.around(stream)(team, groups)]

    return asyncio.run(scenario())


def test_agents_of_a_team_are_sessions_of_its_workflow() -> None:
    groups = Groups("saga_test_team")
    one, other = Agent("a"), Agent("b")
    team = Team(one, other)
    first, second = run(team, groups)
    assert first.workflow == second.workflow
    assert first.workflow.startswith("Team-")
    assert [first.session, second.session] == [f"{first.workflow}/a", f"{first.workflow}/b"]
    assert run(team, groups) == [first, second]
    assert run(Team(one), groups)[0].workflow != first.workflow


def test_a_team_in_a_team_works_for_it_and_it_goes_on() -> None:
    groups = Groups("saga_test_team")
    told = run(Team(Agent("a"), Team(Agent("b")), Agent("c")), groups)
    assert len({identity.workflow for identity in told}) == 1


def test_an_agent_alone_is_a_workflow() -> None:
    groups = Groups("saga_test_team")
    one, other = Agent("a"), Agent("a")
    assert groups.identity(one) == groups.identity(one)
    assert groups.identity(one).workflow != groups.identity(other).workflow


def test_a_team_that_cannot_be_known_again_works_all_the_same() -> None:
    class Odd(Team):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment] # as of a class with __eq__ alone

    groups = Groups("saga_test_team")
    (told,) = run(Odd(Agent("a")), groups)
    assert told.workflow.startswith("a-")
    with pytest.raises(TypeError):
        groups.identity(Odd())
