"""One owner with shared and private things, and every kind of caller that may try to get at them."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
import numpy as np
import psycopg
from matrix.rules import Subject
from sql.api import Caller, Json, answer_of, new_operation
from sql.objects import (
    BUCKET,
    NUMBERS,
    begin,
    begin_append,
    begin_assign,
    entry,
    name_of,
    names,
    put,
    upload,
)

from tensorage.embedded import control

Sql = psycopg.Connection[tuple[Any, ...]]

ROWS = np.arange(77_000_001, 77_000_013, dtype="<i4").reshape(4, 3)
SECRET_ROWS = np.arange(55_000_001, 55_000_013, dtype="<i4").reshape(4, 3)

#: Keys that are shared one by one, and below a prefix.
ROWS_KEY, OBJECTS_KEY, FILE = "lab/rows", "lab/objects", "lab/notes.txt"
SHARED_KEYS = (ROWS_KEY, OBJECTS_KEY, FILE)
#: Keys that are shared with everybody, for as long as an operation needs it.
OPEN_ROWS_KEY, OPEN_OBJECTS_KEY, OPEN_FILE = "open/rows", "open/objects", "open/notes.txt"
OPEN_KEYS = (OPEN_ROWS_KEY, OPEN_OBJECTS_KEY, OPEN_FILE)
OPEN_PREFIX = "open/"
PREFIX = "lab/"
SECRET_ROWS_KEY, SECRET_OBJECTS_KEY, SECRET_FILE = "secret/rows", "secret/objects", "secret/notes.txt"

FILE_CONTENT, SECRET_CONTENT = b"content of the shared file", b"content of the secret file"
NOTE, SECRET_NOTE = "the shared note", "the secret note"

#: All that is kept of a user, blocks as their digests.
_STATE = """
select 'dataset', to_jsonb(d)::text from public.datasets d where d.user_id = %(user)s
union all
select 'block', (to_jsonb(t) - 'tensor')::text || md5(t.tensor) from public.tensors t where t.user_id = %(user)s
union all
select 'shard', to_jsonb(s)::text from public.shards s where s.user_id = %(user)s
union all
select 'object', (to_jsonb(o) - 'last_accessed_at')::text from storage.objects o
 where starts_with(o.name, %(user)s::text || '/')
union all
select 'operation', to_jsonb(o)::text from tensorage.operations o where %(user)s in (o.user_id, o.owner)
union all
select 'share', to_jsonb(s)::text from tensorage.shares s where s.user_id = %(user)s
union all
select 'record', to_jsonb(a)::text from tensorage.audit a where a.user_id = %(user)s
union all
select 'usage', to_jsonb(u)::text from tensorage.usage u where u.user_id = %(user)s
union all
select 'reservation', to_jsonb(r)::text from tensorage.reservations r where r.user_id = %(user)s
union all
select 'quota', to_jsonb(q)::text from tensorage.quotas q
union all
select 'settings', to_jsonb(s)::text from tensorage.settings s
union all
select 'bucket', to_jsonb(b)::text from storage.buckets b
order by 1, 2
"""


@dataclass(frozen=True)
class Person:
    """A caller of the matrix."""

    name: str
    subject: Subject
    caller: Caller
    #: True if the owner shared with the address of this caller at some time: the owner knows it then.
    is_named: bool = False

    @property
    def id(self) -> str:
        return self.caller.id

    def call(self, function: str, arguments: Json | bytes | None = None, **named: Any) -> httpx.Response:
        return self.caller.call(function, arguments, **named)

    def binary(self, function: str, **named: Any) -> httpx.Response:
        """Call a function that answers with bytes."""
        headers = {"Accept": "application/vnd.tensorage"}
        return self.caller.request("POST", f"/rpc/{function}", json=named, headers=headers)


@dataclass
class Things:
    """Things of the owner that probes aim at, by the names that a request needs."""

    rows: Json = field(default_factory=dict)
    objects: Json = field(default_factory=dict)
    object_names: list[str] = field(default_factory=list)
    begun: Json = field(default_factory=dict)
    begun_objects: Json = field(default_factory=dict)
    assigning: Json = field(default_factory=dict)
    growing: Json = field(default_factory=dict)
    leftover: int = 0
    left_object: str = ""
    of_bystander: list[tuple[Any, ...]] = field(default_factory=list)
    open_rows: Json = field(default_factory=dict)
    open_objects: Json = field(default_factory=dict)
    open_names: list[str] = field(default_factory=list)
    #: Datasets by which former sharees were writing when their share ended, by name of the person and of the thing.
    interrupted: dict[tuple[str, str], Json] = field(default_factory=dict)


class World:
    """The owner, the people, and the owner's things."""

    def __init__(self, running: control.Running, database: Sql, http: httpx.Client) -> None:
        self.running, self.database, self.http = running, database, http
        self.owner = self.register()
        # Has an array and a share under the key of the owner's, and nothing to do with anybody.
        self.bystander = self.register()
        self.people: dict[str, Person] = {}
        self.things = Things()
        for name, subject, is_named in (
            ("owner", Subject.OWNER, False),
            ("other", Subject.STRANGER, False),
            ("expired sharee", Subject.STRANGER, True),
            ("ex-sharee", Subject.STRANGER, True),
            ("read sharee", Subject.READER, True),
            ("prefix sharee", Subject.READER, True),
            ("write sharee", Subject.WRITER, True),
            ("deleted user", Subject.DELETED, True),
            ("user marked as deleted", Subject.DELETED, True),
        ):
            caller = self.owner if subject is Subject.OWNER else self.register()
            self.people[name] = Person(name, subject, caller, is_named)
        for name, headers in self._nobodies().items():
            subject = Subject.ANON if name == "anon key" else Subject.BAD_TOKEN
            self.people[name] = Person(name, subject, Caller(http, headers))
        key = running.service_role_key
        service = Caller(http, {"apikey": key, "Authorization": f"Bearer {key}"})
        self.people["service key"] = Person("service key", Subject.SERVICE, service)
        self._make_secrets()
        # Shared and ended by the functions once, as users do it. Later rows of the relation are put there by SQL.
        self.make("rows")
        answer_of(self.owner.call("tensorage_share", key=ROWS_KEY, readers=[self["ex-sharee"].email]))
        answer_of(self.owner.call("tensorage_unshare", key=ROWS_KEY, readers=[self["ex-sharee"].email]))
        self.database.execute("delete from auth.users where id = %s", [self["deleted user"].id])
        self.database.execute(
            "update auth.users set deleted_at = now() where id = %s", [self["user marked as deleted"].id]
        )

    def __getitem__(self, name: str) -> Caller:
        return self.people[name].caller

    # People ---------------------------------------------------------------------------------------------

    def _claims(self, user_id: str, email: str, lifetime_s: int = 3600) -> Json:
        now = int(time.time())
        return {
            "iss": "http://127.0.0.1/auth/v1", "sub": user_id, "email": email, "role": "authenticated",
            "aud": "authenticated", "iat": now, "exp": now + lifetime_s,
        }  # fmt: skip

    def register(self, *, is_sso: bool = False) -> Caller:
        """Make a user who is logged in. There is no password: to hash one takes longer than most probes."""
        user_id, email = str(uuid.uuid4()), f"{secrets.token_hex(8)}@example.com"
        self.database.execute(
            "insert into auth.users (id, email, is_sso_user, email_confirmed_at) values (%s, %s, %s, now())",
            (user_id, email, is_sso),
        )
        token = jwt.encode(self._claims(user_id, email), self.running.jwt_secret, algorithm="HS256")
        return Caller(self.http, self._headers(token), user_id, email)

    def _headers(self, token: str) -> dict[str, str]:
        return {"apikey": self.running.anon_key, "Authorization": f"Bearer {token}"}

    def _nobodies(self) -> Mapping[str, Mapping[str, str]]:
        """Headers of those who have no login: without a key, with the public one, and with bad tokens of the owner."""
        key, signed = self.running.anon_key, self.running.jwt_secret
        claims = self._claims(self.owner.id, self.owner.email)
        good = jwt.encode(claims, signed, algorithm="HS256")
        stranger = jwt.encode(self._claims(str(uuid.uuid4()), "x@example.com"), signed, algorithm="HS256")
        tokens = {
            "expired token": jwt.encode(self._claims(self.owner.id, self.owner.email, -120), signed, "HS256"),
            "forged: alg none": jwt.encode(claims, None, algorithm="none"),
            "forged: other secret": jwt.encode(claims, "another secret, as long as one has to be", "HS256"),
            "forged: signed with the public key": jwt.encode(claims, key, algorithm="HS256"),
            "forged: role": _altered(good, role="service_role"),
            "forged: sub": _altered(stranger, sub=self.owner.id),
            "forged: without exp": _altered(good, exp=None),
            "forged: aud and iss": _altered(good, aud="another", iss="https://another.example/auth/v1"),
            "forged: truncated": good[:-9],
        }
        return {
            "anon key": self._headers(key),
            "no key": {},
            **{name: self._headers(token) for name, token in tokens.items()},
        }

    # Things ---------------------------------------------------------------------------------------------

    def make(self, *wanted: str) -> None:
        """Make things anew, as if nobody had touched them, and share what is shared."""
        self.database.execute(
            "delete from public.datasets where user_id = %s and (state = 'staged' or key <> all (%s))",
            [self.owner.id, [*SHARED_KEYS, SECRET_ROWS_KEY, SECRET_OBJECTS_KEY]],
        )
        self.secret_rows["version"] = self.one(
            "select version from public.datasets where id = %s", self.secret_rows["id"]
        )
        # Objects of earlier probes: each look at the bucket would look at all of them.
        self.database.execute(
            "delete from storage.objects o where not starts_with(o.name, %s) and not starts_with(o.name, %s) "
            "and not exists (select from public.shards s where s.name = o.name)",
            [f"{self.owner.id}/secret", f"{self.owner.id}/lab/notes"],
        )
        # Records of earlier probes: each look at the owner's state would look at all of them.
        self.database.execute("delete from tensorage.audit where user_id = %s", [self.owner.id])
        self.database.execute(
            "delete from tensorage.operations where %s in (user_id, owner)", [self.owner.id]
        )
        self._restore_bystander()
        for name in wanted:
            getattr(self, f"_make_{name}")()
        self.share(is_open="open" in wanted)

    def share(self, *, is_open: bool) -> None:
        """Make the relation what it is to be, whatever probes have done to it."""
        mine = [self.owner.id]
        self.database.execute("delete from tensorage.shares where user_id = %s", mine)
        rows = [(PREFIX, self["prefix sharee"].email, False, None)]
        if is_open:
            rows.append((OPEN_PREFIX, "", True, None))
        past = "2026-01-01T00:00:00Z"
        for key in SHARED_KEYS:
            rows += [
                (key, self["read sharee"].email, False, None),
                (key, self["write sharee"].email, True, None),
                (key, self["expired sharee"].email, True, past),
                (key, self["deleted user"].email, True, None),
                (key, self["user marked as deleted"].email, True, None),
            ]
        # One statement for all rows, as everything is made anew hundreds of times.
        self.database.execute(
            "insert into tensorage.shares (user_id, pattern, reader, can_write, expires_at) "
            "select %s, * from unnest(%s::text[], %s::text[], %s::bool[], %s::timestamptz[])",
            [self.owner.id, *map(list, zip(*rows, strict=True))],
        )

    def _restore_bystander(self) -> None:
        """Give back what a probe has taken, while a check was missing."""
        mine, theirs = [self.bystander.id], f"{ROWS_KEY} of the bystander"
        if self.state_of_bystander() == self.things.of_bystander:
            return
        for table in ("tensorage.shares", "public.datasets"):
            self.database.execute(f"delete from {table} where user_id = %s", mine)
        self.bystander.store(ROWS_KEY, SECRET_ROWS, attrs={"note": theirs})
        with self.database.cursor() as cursor:
            cursor.executemany(
                "insert into tensorage.shares (user_id, pattern, reader, can_write) values (%s, %s, %s, true)",
                [(self.bystander.id, key, "unknown@example.com") for key in (ROWS_KEY, PREFIX)],
            )
        self.things.of_bystander = self.state_of_bystander()

    def _make_rows(self) -> None:
        attrs = {"note": NOTE}
        self.owner.store(ROWS_KEY, ROWS, chunk=5, attrs=attrs, overwrite=True)
        self.things.rows = self.owner.open(ROWS_KEY)

    def _make_objects(self) -> None:
        begun = begin(self.owner, OBJECTS_KEY, attrs={"note": NOTE}, overwrite=True)
        answer_of(self.owner.commit(begun["id"], shards=self._fill(begun, NUMBERS)))
        self.things.objects = self.owner.open(OBJECTS_KEY)
        self.things.object_names = names(self.owner, self.things.objects)

    def _fill(self, begun: Json, numbers: Iterable[int], **more: Any) -> list[Json]:
        """Upload objects of shards, past the policies, and give what the catalogue is to be told of them."""
        entries = []
        for number in numbers:
            name = name_of(begun, number)
            content = f"{number} of {begun['id']}".encode()
            assert upload(self["service key"], name, content).status_code == 200
            entries.append(entry(number, name, **more))
        return entries

    def _make_file(self) -> None:
        assert upload(self["service key"], f"{self.owner.id}/{FILE}", FILE_CONTENT).status_code == 200

    def _make_open(self) -> None:
        """Make arrays and a file that everybody may use."""
        self.owner.store(OPEN_ROWS_KEY, ROWS, chunk=5, overwrite=True)
        self.things.open_rows = self.owner.open(OPEN_ROWS_KEY)
        begun = begin(self.owner, OPEN_OBJECTS_KEY, overwrite=True)
        answer_of(self.owner.commit(begun["id"], shards=self._fill(begun, NUMBERS)))
        self.things.open_objects = self.owner.open(OPEN_OBJECTS_KEY)
        self.things.open_names = names(self.owner, self.things.open_objects)
        assert upload(self["service key"], f"{self.owner.id}/{OPEN_FILE}", FILE_CONTENT).status_code == 200

    def _make_begun(self) -> None:
        operation = new_operation()
        begun = self.owner.begin("lab/begun", [4, 3], operation=operation, overwrite=True)
        self.things.begun = begun | {"operation": operation}
        answer_of(self.owner.put(self.things.begun["id"], ROWS[:2], chunk=3))

    def _make_begun_objects(self) -> None:
        begun = self.things.begun_objects = begin(self.owner, "lab/begun objects", overwrite=True)
        answer_of(put(self.owner, begun, *self._fill(begun, [0])))

    def _make_assigning(self) -> None:
        self._make_rows()
        self.things.assigning = self.owner.begin_assign(self.things.rows)

    def _make_growing(self) -> None:
        self._make_objects()
        self.things.growing = begin_append(self.owner, self.things.objects, 1)

    def _make_filled(self) -> None:
        """Begin an array, and put all of its elements there."""
        self._make_begun()
        answer_of(self.owner.put(self.things.begun["id"], ROWS[2:], index=6, chunk=3))

    def _make_removed_objects(self) -> None:
        """Remove an array of Storage, whose objects are left to be deleted."""
        self._make_objects()
        answer_of(self.owner.call("tensorage_remove", key=OBJECTS_KEY))

    def _make_no_quota(self) -> None:
        self.database.execute("delete from tensorage.quotas")
        self.database.execute(
            "update tensorage.settings set default_quota_bytes = null, default_quota_arrays = null"
        )

    def _make_spare(self) -> None:
        """Make a bucket that nothing is kept in, and no other beside that of the arrays."""
        self.database.execute("delete from storage.buckets where id <> %s", [BUCKET])
        self.database.execute(
            "insert into storage.buckets (id, name, public) values ('spare', 'spare', false)"
        )

    def _make_no_new_file(self) -> None:
        self.database.execute("delete from storage.objects where name = %s", [f"{self.owner.id}/lab/new.txt"])

    def _make_mine(self) -> None:
        assert upload(self["service key"], f"{self.owner.id}/mine/a.txt", b"mine").status_code == 200

    def _make_leftover(self) -> None:
        """Make a dataset that has expired, with blocks; and what is old enough to be forgotten."""
        begun = self.owner.begin("lab/left", [4, 3])
        answer_of(self.owner.put(begun["id"], ROWS))
        self.things.leftover = begun["id"]
        mine = [self.owner.id]
        left = begin(self.owner, "lab/left objects")
        self.things.left_object = name_of(left, 0)
        assert upload(self["service key"], self.things.left_object, b"left").status_code == 200
        # Somebody has left another one, by writing to an array of the owner's.
        self.database.execute(
            "insert into public.datasets (user_id, writer, key, shape, dtype, block_size, expires_at) "
            "values (%s, %s, 'lab/left by others', '{0}', '<i4', 1, 'infinity')",
            [self.owner.id, self.bystander.id],
        )
        self.database.execute(
            "update public.datasets set expires_at = '-infinity' where user_id = %s and key like 'lab/left%%'",
            mine,
        )
        self.database.execute(
            "insert into tensorage.operations (user_id, id, owner, answer, finished_at) "
            "values (%s, gen_random_uuid(), %s, '{}', now() - interval '2 days')",
            [*mine, *mine],
        )
        self.database.execute(
            "insert into tensorage.audit (user_id, at, action, key) "
            "values (%s, now() - interval '1 year', 'created', 'lab/forgotten')",
            mine,
        )

    def _make_interrupted(self) -> None:
        """Let sharees begin to write, and end their shares."""
        self._make_rows()
        self._make_objects()
        things, interrupted = self.things, self.things.interrupted
        for name in ("ex-sharee", "expired sharee"):
            caller = self[name]
            self.database.execute(
                "insert into tensorage.shares (user_id, pattern, reader, can_write) values (%s, %s, %s, true) "
                "on conflict (user_id, pattern, reader) do update set can_write = true, expires_at = null",
                [self.owner.id, PREFIX, caller.email],
            )
            asked = {"append": True, "owner": self.owner.email, "operation": new_operation()}
            begun = caller.begin(ROWS_KEY, [4, 3], chunk=5, **asked)
            interrupted[name, "append"] = begun | {"operation": asked["operation"]}
            answer_of(caller.put(begun["id"], ROWS, chunk=5))
            interrupted[name, "assign"] = caller.begin_assign(things.rows)
            patched = caller.patch(interrupted[name, "assign"]["id"], ROWS[:1], [0], [3])
            answer_of(patched)
            growing = interrupted[name, "objects"] = begin_assign(caller, things.objects)
            entries = self._fill(growing, [0], based_on=things.object_names[0])
            answer_of(put(caller, growing, *entries))
            # An append that was done while they might, and its operation.
            done = new_operation()
            appended = caller.append(ROWS_KEY, ROWS[:0], owner=self.owner.email, operation=done)
            interrupted[name, "done"] = {**answer_of(appended), "operation": done}
        self.things.rows = self.owner.open(ROWS_KEY)

    def _make_secrets(self) -> None:
        attrs = {"note": SECRET_NOTE}
        self.owner.store(SECRET_ROWS_KEY, SECRET_ROWS, attrs=attrs)
        self.secret_rows = self.owner.open(SECRET_ROWS_KEY)
        begun = begin(self.owner, SECRET_OBJECTS_KEY, attrs=attrs)
        answer_of(self.owner.commit(begun["id"], shards=self._fill(begun, NUMBERS)))
        self.secret_objects = self.owner.open(SECRET_OBJECTS_KEY)
        self.secret_names = names(self.owner, self.secret_objects)
        # Only the service key may: objects of an array are never written over.
        assert upload(self["service key"], self.secret_names[0], SECRET_CONTENT).status_code == 200
        assert upload(self.owner, f"{self.owner.id}/{SECRET_FILE}", SECRET_CONTENT).status_code == 200

    # Looks past the policies ----------------------------------------------------------------------------

    def one(self, statement: str, *values: Any) -> Any:
        """The first column of the only row of a statement, or None."""
        row = self.database.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def state(self) -> list[tuple[Any, ...]]:
        """All that is kept of the owner."""
        return self.database.execute(_STATE, {"user": self.owner.id}).fetchall()

    def state_of_bystander(self) -> list[tuple[Any, ...]]:
        """All that is kept of somebody who has nothing to do with anybody."""
        return self.database.execute(_STATE, {"user": self.bystander.id}).fetchall()

    def elements(self, data_id: int) -> bytes:
        """Elements of an array of the database, as they are stored."""
        query = "select string_agg(tensor, '' order by index) from public.tensors where data_id = %s"
        return bytes(self.one(query, data_id) or b"")

    def content(self, name: str, bucket: str = BUCKET) -> bytes | None:
        """Content of an object, or None if there is none."""
        caller = self["service key"]
        root = str(self.http.base_url).replace("/rest/v1", "/storage/v1").rstrip("/")
        answer = caller.request("GET", f"{root}/object/authenticated/{bucket}/{name}")
        return answer.content if answer.status_code == 200 else None

    # Leaks ----------------------------------------------------------------------------------------------

    def marks(self, person: Person, *, is_open: bool) -> list[str]:
        """Texts that no answer to a person may hold on its own, however they are written.

        Parameters
        ----------
        is_open
            True if the owner shares something with everybody: those who are signed in may know whose it is.
        """
        if person.subject is Subject.SERVICE:
            return []
        others = [p for p in self.people.values() if p.caller.email and p.caller != person.caller]
        unknown = [self.bystander.email, self.bystander.id, "unknown@example.com"]
        if person.subject is Subject.OWNER:
            return unknown + [p.caller.email for p in others if not p.is_named]
        secret = SECRET_ROWS.tobytes()
        # Told to owners who end a share of a key below it.
        marks = [
            *unknown,
            f"A share of {PREFIX!r}",
            SECRET_NOTE,
            secret.decode("latin-1"),
            secret.hex(),
            SECRET_CONTENT.decode(),
        ]
        marks += [SECRET_ROWS_KEY, SECRET_OBJECTS_KEY, SECRET_FILE]
        can_read = person.subject in (Subject.READER, Subject.WRITER) or (
            is_open and person.subject is Subject.STRANGER
        )
        marks += [p.caller.email for p in others if not (can_read and p.subject is Subject.OWNER)]
        if not can_read:
            shared = ROWS.tobytes()
            marks += [self.owner.id, NOTE, shared.decode("latin-1"), shared.hex(), FILE_CONTENT.decode()]
            marks += [ROWS_KEY, OBJECTS_KEY, FILE]
        return marks


@contextmanager
def http_of(running: control.Running) -> Iterator[httpx.Client]:
    """A client of the REST API, which keeps its connections."""
    limits = httpx.Limits(max_connections=10, max_keepalive_connections=10)
    with httpx.Client(base_url=f"{running.api_url}/rest/v1", timeout=60, limits=limits) as http:
        yield http


def _altered(token: str, **changes: Any) -> str:
    """The token with other claims, under its old signature. None takes a claim away."""
    head, _, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False}) | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    body = jwt.utils.base64url_encode(json.dumps(kept).encode()).decode()
    return f"{head}.{body}.{signature}"
