"""Shares that end while a request of the sharee waits for the row of the array."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import psycopg
from matrix.world import OBJECTS_KEY, ROWS, ROWS_KEY, World
from sql.api import Caller, answer_of, whole
from sql.conftest import wait_for_waiter
from sql.objects import begin_append, fill

Sql = psycopg.Connection[tuple[Any, ...]]

#: The end of a share: by its owner's word, or with the key that was shared.
End = Literal["unshare", "rename"]

#: A request, made ready before the row is locked.
Ready = Callable[[], httpx.Response]


def append(world: World, caller: Caller) -> Ready:
    return lambda: caller.call("tensorage_append", whole(ROWS, key=ROWS_KEY, owner=world.owner.email))


def assign(world: World, caller: Caller) -> Ready:
    return lambda: caller.assign(world.things.rows, -ROWS, [0], [12])


def annotate(world: World, caller: Caller) -> Ready:
    return lambda: caller.call("tensorage_annotate", data_id=world.things.rows["id"], attrs={"by": "writer"})


def begin_assign(world: World, caller: Caller) -> Ready:
    return lambda: caller.ask_to_assign(world.things.rows)


def commit_assignment(world: World, caller: Caller) -> Ready:
    begun = caller.begin_assign(world.things.rows)
    answer_of(caller.patch(begun["id"], -ROWS[:1], [0], [3]))
    return lambda: caller.commit(begun["id"])


def commit_objects(world: World, caller: Caller) -> Ready:
    begun = begin_append(caller, world.things.objects, 1)
    entries = fill(caller, begun, [4], of_4=world.things.object_names[4])
    return lambda: caller.commit(begun["id"], shards=entries)


REQUESTS = [append, assign, annotate, begin_assign, commit_assignment, commit_objects]


def race(world: World, prepare: Callable[[World, Caller], Ready], end: End) -> httpx.Response:
    """Send a request of the write sharee, end the share while it waits, and return its answer."""
    world.make("rows", "objects")
    caller = world["write sharee"]
    request = prepare(world, caller)
    key = OBJECTS_KEY if prepare is commit_objects else ROWS_KEY
    target = (world.things.objects if prepare is commit_objects else world.things.rows)["id"]
    answers: list[httpx.Response] = []
    with psycopg.connect(world.running.superuser_url) as holder:
        holder.execute("select from public.datasets where id = %s for update", [target])
        thread = threading.Thread(target=lambda: answers.append(request()))
        thread.start()
        wait_for_waiter(holder)
        if end == "unshare":
            world.database.execute(
                "delete from tensorage.shares where reader = %s and pattern = %s", [caller.email, key]
            )
        else:
            holder.execute("update public.datasets set key = 'other/renamed' where id = %s", [target])
        holder.commit()
    thread.join()
    return answers[0]


@contextmanager
def locked_rows(world: World) -> Iterator[Sql]:
    """Hold the lock of the owner's array until the block ends, or the connection commits."""
    with psycopg.connect(world.running.superuser_url) as holder:
        holder.execute("select from public.datasets where id = %s for update", [world.things.rows["id"]])
        yield holder
