"""Some rounds of chaos, always the same: every operation in each engine, and the moments that staged work fears most.

``make chaos`` runs a thousand others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos.model import Verdict
from chaos.plan import SUBJECTS, Kill, Phase, Plan, Target, draw_plan
from chaos.rounds import Arena, Result
from chaos.table import Table

from tensorage.types import Engine

#: Seed of the rounds; any would do.
SEED = "test"


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with Arena(tmp_path_factory.mktemp("chaos") / "data") as arena:
        yield arena


def number_of(kind: str, engine: Engine) -> int:
    """The first round whose victim begins with it."""
    return SUBJECTS.index((kind, engine))


def run(arena: Arena, plan: Plan) -> Result:
    result = arena.run(plan)
    assert not result.problems, f"\n{result}"
    assert [met for met in result.met if met.is_victim], f"nothing was begun:\n{result}"
    return result


@pytest.mark.parametrize(("kind", "engine"), SUBJECTS)
def test_every_operation(arena: Arena, kind: str, engine: Engine) -> None:
    run(arena, draw_plan(SEED, number_of(kind, engine)))


#: Kinds of staged work, and the requests that bring it. The first one is answered, and what it brought is lost.
STAGED: list[tuple[str, Engine, str]] = [
    ("staged write", "database", "put"),
    ("staged write", "storage", "put_shards"),
    ("write from blocks", "database", "put"),
    ("fill", "database", "put"),
    ("fill", "storage", "put_shards"),
    ("staged append", "database", "put"),
    ("staged append", "storage", "put_shards"),
    ("staged assign", "database", "patch"),
    ("staged assign", "storage", "put_shards"),
]


@pytest.mark.parametrize(("kind", "engine", "function"), STAGED)
def test_staged_rows_that_are_lost(arena: Arena, kind: str, engine: Engine, function: str) -> None:
    """All further requests are answered, too: at the commit, whoever writes is told, or begins anew."""
    kill = Kill(Target.POSTGRES, 0, Phase.ANSWERED, function, 1, holds=True, freezes=True)
    plan = draw_plan(SEED, number_of(kind, engine) + len(SUBJECTS), kill, writers=[0], parallel=1)
    result = run(arena, plan)
    assert result.was_met, f"there was no {function}:\n{result}"


@pytest.mark.parametrize(
    ("fault", "kind", "function", "verdict"),
    [
        ("resends under another id", "append", "append", Verdict.DOUBLED),
        ("answers before the commit", "staged write", "put", Verdict.LOST),
    ],
)
def test_faults_are_found(
    tmp_path_factory: pytest.TempPathFactory, fault: str, kind: str, function: str, verdict: Verdict
) -> None:
    """A client with a mistake in it is found out, in the column that it belongs to."""
    kill = Kill(Target.POSTGRES, 0, Phase.UNANSWERED, function, 1, holds=True)
    table = Table()
    with Arena(tmp_path_factory.mktemp("faulty") / "data", fault=fault) as arena:
        result = arena.run(draw_plan(SEED, number_of(kind, "database"), kill, writers=[0], parallel=1))
        table.add(result)
    assert [met.verdict for met in result.met][:1] == [verdict], f"\n{result}"
    assert result.problems
    assert table.total(verdict.value) >= 1
    assert table.bad_rounds == 1


def test_a_round_can_be_drawn_again() -> None:
    for number in range(40):
        plan = draw_plan(SEED, number)
        assert str(plan) == str(draw_plan(SEED, number))
        assert plan.prefix == f"{SEED}-{number}/"
    assert len({str(draw_plan(SEED, number).kill) for number in range(40)}) > 30
