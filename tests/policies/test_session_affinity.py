from tests.policies.factory import Cluster, engine, request, session

from saga.policies.session_affinity import SessionAffinity


def test_home_whatever_its_load() -> None:
    home, other = engine("home", num_running=10, num_queued=50), engine("other")
    asked = request(of=session(home=home))
    answer = SessionAffinity().route(asked, Cluster(engines=[home, other]))
    assert answer is not None
    assert answer.engine is home


def test_before_it_ran_anywhere_the_engine_where_it_waits() -> None:
    assigned, other = engine("assigned", num_sessions=5), engine("other")
    answer = SessionAffinity().route(
        request(of=session(assigned=assigned)), Cluster(engines=[other, assigned])
    )
    assert answer is not None
    assert answer.engine is assigned


def test_a_new_session_goes_where_fewest_live() -> None:
    many, few = engine("many", num_sessions=3), engine("few", num_sessions=2, num_running=9)
    answer = SessionAffinity().route(request(), Cluster(engines=[many, few]))
    assert answer is not None
    assert answer.engine is few


def test_a_draining_home_is_left() -> None:
    home, other = engine("home", draining=True), engine("other")
    answer = SessionAffinity().route(request(of=session(home=home)), Cluster(engines=[other]))
    assert answer is not None
    assert answer.engine is other
