from __future__ import annotations

from tests.report.factory import run, workflow

from saga.report.fairness_content import MOST_TENANTS, fairness_table, fairness_tables
from saga.report.metrics import Summary, summarise


def of_tenants(*names: str, share_s: float = 20) -> Summary:
    """Every tenant has one workflow of 10 s, and is its own class."""
    return summarise(
        run(
            [
                workflow(f"w-{name}", 10, tenant=name, tenant_class=name, share_s=share_s)
                for name in names
            ],
            ttft_s={name: [0.5] for name in names},
            deviation=0.375,
        )
    )


def test_one_tenant_is_compared_with_nobody() -> None:
    (table,) = fairness_tables({"p": of_tenants("a")})
    assert table.header[:3] == ("preset", "Jain", "max/min")
    assert table.rows == (("p", "1.000", "1.00", "0.50", "0.50", "0.38", "0"),)


def test_classes_and_tenants_have_tables_if_there_are_several() -> None:
    _, classes, tenants = fairness_tables({"p": of_tenants("a", "b"), "q": of_tenants("b")})
    assert [row[:2] for row in classes.rows] == [("p", "a"), ("p", "b"), ("q", "a"), ("q", "b")]
    assert classes.rows[0] == ("p", "a", "1.00", "1.00", "0.50", "0.00", "100.0")
    assert classes.rows[2][2:] == ("–",) * 5
    assert tenants.header == ("tenant", "p", "q")
    assert tenants.rows == (("a", "0.50", "–"), ("b", "0.50", "0.50"))


def test_many_tenants_and_tenants_of_unknown_share_have_no_table() -> None:
    names = [f"t{number}" for number in range(MOST_TENANTS + 1)]
    assert len(fairness_tables({"p": of_tenants(*names)})) == 2
    assert len(fairness_tables({"p": of_tenants(*names[:-1])})) == 3
    assert len(fairness_tables({"p": of_tenants("a", "b", share_s=0)})) == 2


def test_what_is_undefined_is_a_dash() -> None:
    table = fairness_table({"idle": summarise(run())})
    assert table.rows == (("idle", "–", "–", "–", "–", "–", "0"),)


def test_every_table_is_rectangular() -> None:
    for table in fairness_tables({"p": of_tenants("a", "b"), "idle": summarise(run())}):
        assert {len(row) for row in table.rows} == {len(table.header)}
