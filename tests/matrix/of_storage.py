"""Probes of every route of the Storage API, resumable uploads among them."""

from __future__ import annotations

import base64
from typing import Any

import httpx
from matrix.operations import Operation, Outcome, Probe
from matrix.rules import Kind, Subject
from matrix.world import FILE, FILE_CONTENT, OPEN_FILE, SECRET_CONTENT, SECRET_FILE, Person, World
from sql.api import new_key
from sql.objects import BUCKET, name_of, storage

_CONTENT = b"content of somebody else"
_TUS = {"Tus-Resumable": "1.0.0"}
_PIECE = {**_TUS, "Content-Type": "application/offset+octet-stream"}


def _is_ok(answer: httpx.Response) -> bool:
    return answer.status_code < 300


def _file(w: World) -> str:
    return f"{w.owner.id}/{FILE}"


def _secret_file(w: World) -> str:
    return f"{w.owner.id}/{SECRET_FILE}"


def _operation(
    route: str, words: str, kind: Kind, probe: Probe, *needs: str, is_quiet: bool = False
) -> Operation:
    return Operation(f"{route} {words}", route, kind, probe, needs, is_quiet=is_quiet, is_function=False)


def _targets(w: World, what: str) -> tuple[str, bytes]:
    """Name and content of an object."""
    if what == "file":
        return _file(w), FILE_CONTENT
    if what == "private file":
        return _secret_file(w), SECRET_CONTENT
    name, dataset = (
        (w.things.object_names[0], w.things.objects)
        if what == "object"
        else (w.secret_names[0], w.secret_objects)
    )
    return name, SECRET_CONTENT if what == "private object" else f"0 of {dataset['id']}".encode()


#: Things that are read, with the kind of reading them and what is made for them.
_READ = {
    "object": (Kind.READ, "objects"),
    "file": (Kind.READ, "file"),
    "private object": (Kind.READ_PRIVATE, "no_quota"),
    "private file": (Kind.READ_PRIVATE, "no_quota"),
}


def _download(route: str, what: str, path: str, **headers: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        name, content = _targets(w, what)
        answer = storage(p.caller, "GET", f"{path}/{BUCKET}/{name}", headers=headers)
        wanted = content[2:5] if headers else content
        return Outcome([answer], _is_ok(answer) and answer.content == wanted)

    kind, need = _READ[what]
    words = f"{what}, a range" if headers else what
    return _operation(route, words, Kind.CLOSED if "public" in path else kind, probe, need)


def _head(route: str, what: str, path: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        name, content = _targets(w, what)
        answer = storage(p.caller, "HEAD", f"{path}/{BUCKET}/{name}")
        return Outcome([answer], _is_ok(answer) and int(answer.headers["content-length"]) == len(content))

    kind, need = _READ[what]
    return _operation(route, f"{what}, HEAD", Kind.CLOSED if "public" in path else kind, probe, need)


def _info(route: str, what: str, path: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        name, content = _targets(w, what)
        answer = storage(p.caller, "GET", f"{path}/{BUCKET}/{name}")
        return Outcome([answer], _is_ok(answer) and answer.json()["size"] == len(content))

    kind, need = _READ[what]
    return _operation(route, what, Kind.CLOSED if "public" in path else kind, probe, need)


def _sign(what: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        name, content = _targets(w, what)
        answer = storage(p.caller, "POST", f"/object/sign/{BUCKET}/{name}", json={"expiresIn": 60})
        if not _is_ok(answer):
            return Outcome([answer], is_done=False)
        fetched = storage(w["no key"], "GET", answer.json()["signedURL"])
        return Outcome([answer, fetched], fetched.content == content)

    # A signed URL stays good when a share ends: nobody signs for others.
    kind = Kind.READ_PRIVATE if "private" in what else Kind.MANAGE
    return _operation("POST /object/sign/{bucket}/{name:path}", what, kind, probe, _READ[what][1])


def _sign_many(w: World, p: Person) -> Outcome:
    names = [_file(w), w.things.object_names[0], _secret_file(w)]
    answer = storage(p.caller, "POST", f"/object/sign/{BUCKET}", json={"expiresIn": 60, "paths": names})
    signed = [entry["signedURL"] for entry in answer.json()] if _is_ok(answer) else [None]
    if any(signed):
        return Outcome([answer], is_done=True)
    # The answer repeats the names that were asked for, each with an error.
    return Outcome([answer] if not _is_ok(answer) else [], is_done=False)


def _fetch_signed(w: World, p: Person) -> Outcome:
    """Fetch by a URL that was signed for another object of the owner."""
    signed = storage(w.owner, "POST", f"/object/sign/{BUCKET}/{_file(w)}", json={"expiresIn": 60}).json()[
        "signedURL"
    ]
    token = signed.partition("?token=")[2]
    answers = [
        storage(p.caller, "GET", f"/object/sign/{BUCKET}/{_secret_file(w)}?token={token}"),
        storage(p.caller, "GET", f"/object/sign/{BUCKET}/{_file(w)}"),
        storage(p.caller, "GET", f"/object/sign/{BUCKET}/{_file(w)}?token={_token_of(p)}"),
    ]
    return Outcome(answers, any(_is_ok(answer) for answer in answers))


def _token_of(p: Person) -> str:
    return p.caller.headers.get("Authorization", "Bearer none").removeprefix("Bearer ")


def _list(folder: str, kind: Kind, entry: str, *needs: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        body = {"prefix": folder.format(owner=w.owner.id, objects=w.things.objects.get("id")), "limit": 1000}
        answer = storage(p.caller, "POST", f"/object/list/{BUCKET}", json=body)
        names = [found["name"] for found in answer.json()] if _is_ok(answer) else []
        return Outcome([answer], entry.format(owner=w.owner.id) in names)

    route = "POST /object/list/{bucket}"
    return _operation(route, folder or "all", kind, probe, *needs, is_quiet=True)


# Writing ------------------------------------------------------------------------------------------------


def _upload(
    words: str, kind: Kind, name: Any, *needs: str, method: str = "POST", upsert: bool = True
) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        where, content = name(w), f"{_CONTENT.decode()} {new_key()}".encode()
        headers = {"Content-Type": "application/octet-stream", "x-upsert": str(upsert).lower()}
        answer = storage(p.caller, method, f"/object/{BUCKET}/{where}", content=content, headers=headers)
        return Outcome([answer], w.content(where) == content)

    return _operation(f"{method} /object/{{bucket}}/{{name:path}}", words, kind, probe, *needs)


def _upload_own(w: World, p: Person) -> Outcome:
    where = f"{p.id or new_key()}/{new_key()}"
    answer = storage(p.caller, "POST", f"/object/{BUCKET}/{where}", content=_CONTENT)
    return Outcome([answer], w.content(where) == _CONTENT)


def _own_object(w: World, p: Person) -> str:
    """Upload a file to the caller's own folder, past the policies, and return its name. The owner has one."""
    if p.subject is Subject.OWNER:
        return _file(w)
    name = f"{p.id or 'nobody'}/{new_key()}"
    service = w["service key"]
    assert _is_ok(storage(service, "POST", f"/object/{BUCKET}/{name}", content=_CONTENT))
    return name


def _move(route: str, words: str, kind: Kind, ends: Any, *needs: str, copies: bool = False) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        source, destination = ends(w, p)
        content = w.content(source)
        body = {"bucketId": BUCKET, "sourceKey": source, "destinationKey": destination}
        answer = storage(p.caller, "POST", "/object/copy" if copies else "/object/move", json=body)
        is_there = w.content(destination) == content is not None
        return Outcome([answer], is_there and (copies or w.content(source) is None))

    return _operation(route, words, kind, probe, *needs)


def _remove(words: str, kind: Kind, name: Any, *needs: str, many: bool) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        where = name(w)
        if many:
            answer = storage(p.caller, "DELETE", f"/object/{BUCKET}", json={"prefixes": [where]})
        else:
            answer = storage(p.caller, "DELETE", f"/object/{BUCKET}/{where}")
        return Outcome([answer], w.content(where) is None)

    route = "DELETE /object/{bucket}" if many else "DELETE /object/{bucket}/{name:path}"
    return _operation(route, words, kind, probe, *needs, is_quiet=many)


# Uploads in pieces --------------------------------------------------------------------------------------


def _metadata(name: str) -> str:
    pairs = {"bucketName": BUCKET, "objectName": name}
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def _create(person: Person, name: str, length: int = 8) -> httpx.Response:
    headers = {**_TUS, "Upload-Length": str(length), "Upload-Metadata": _metadata(name), "x-upsert": "true"}
    return storage(person.caller, "POST", "/upload/resumable", headers=headers)


def _path(answer: httpx.Response) -> str:
    return "/upload/resumable" + str(answer.headers["location"]).partition("/upload/resumable")[2]


def _create_in(route: str, words: str, kind: Kind, name: Any, *needs: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        answer = _create(p, name(w))
        if not _is_ok(answer):
            return Outcome([answer], is_done=False)
        sent = storage(
            p.caller, "PATCH", _path(answer), headers={**_PIECE, "Upload-Offset": "0", "x-upsert": "true"},
            content=b"8 bytes!",
        )  # fmt: skip
        return Outcome([answer, sent], w.content(name(w)) == b"8 bytes!")

    return _operation(route, words, kind, probe, *needs)


def _of_another(method: str, words: str) -> Operation:
    """A request about an upload that the owner has begun, and whose name the caller knows."""

    def probe(w: World, p: Person) -> Outcome:
        begun = _create(w.people["owner"], f"{w.owner.id}/mine/{new_key()}")
        headers = {**_PIECE, "Upload-Offset": "0"} if method == "PATCH" else _TUS
        content = {"content": b"four"} if method == "PATCH" else {}
        answer = storage(p.caller, method, _path(begun), headers=headers, **content)
        now = storage(w.owner, "HEAD", _path(begun), headers=_TUS)
        is_done = {
            "HEAD": _is_ok(answer),
            "PATCH": now.headers.get("upload-offset") == "4",
            "DELETE": not _is_ok(now),
        }[method]
        return Outcome([answer], is_done)

    return _operation(f"{method} /upload/resumable/{{upload}}", words, Kind.UPLOAD, probe)


def _options(path: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        answer = storage(p.caller, "OPTIONS", path.replace("{upload}", "any"))
        return Outcome([answer], "tus-version" in answer.headers)

    return _operation(f"OPTIONS {path}", "", Kind.PROTOCOL, probe)


# Buckets ------------------------------------------------------------------------------------------------


def _bucket(method: str, path: str, kind: Kind, done: Any, **body: Any) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        # The service key may: at a bucket that nothing is kept in.
        name = "spare" if p.subject is Subject.SERVICE and method != "GET" else BUCKET
        body_of = {"json": {k: new_key().replace(" ", "-") if v == "?" else v for k, v in body.items()}}
        sent = body_of if method in ("POST", "PUT") and body else {}
        answer = storage(p.caller, method, path.replace("{bucket}", name), **sent)
        return Outcome([answer], _is_ok(answer) and bool(done(w, p, answer)))

    return _operation(f"{method} {path}", "", kind, probe, "spare", is_quiet=method == "GET")


def _has_spare(w: World) -> bool:
    return bool(w.one("select count(*) from storage.buckets where id = 'spare'"))


_RANGE = {"Range": "bytes=2-4"}
_OBJECT = "GET /object/{bucket}/{name:path}"
_PRIVATE = "GET /object/authenticated/{bucket}/{name:path}"
_PUBLIC = "GET /object/public/{bucket}/{name:path}"


def _open(what: str) -> Operation:
    """A download of something that everybody may use."""

    def probe(w: World, p: Person) -> Outcome:
        name = w.things.open_names[0] if what == "object" else f"{w.owner.id}/{OPEN_FILE}"
        content = f"0 of {w.things.open_objects['id']}".encode() if what == "object" else FILE_CONTENT
        answer = storage(p.caller, "GET", f"/object/authenticated/{BUCKET}/{name}")
        return Outcome([answer], _is_ok(answer) and answer.content == content)

    return _operation(_PRIVATE, f"{what}, open to everybody", Kind.OPEN, probe, "open")


READING = [
    *(_open(what) for what in ("object", "file")),
    *(_download(_OBJECT, what, "/object") for what in _READ),
    *(_download(_OBJECT, what, "/object", **_RANGE) for what in _READ),
    *(_download(_PRIVATE, what, "/object/authenticated") for what in _READ),
    *(_download(_PUBLIC, what, "/object/public") for what in ("object", "file")),
    *(_head(_PRIVATE, what, "/object/authenticated") for what in _READ),
    *(_info("GET /object/info/{bucket}/{name:path}", what, "/object/info") for what in _READ),
    *(
        _info("GET /object/info/authenticated/{bucket}/{name:path}", what, "/object/info/authenticated")
        for what in _READ
    ),
    _info("GET /object/info/public/{bucket}/{name:path}", "file", "/object/info/public"),
    *(_sign(what) for what in _READ),
    _operation(
        "POST /object/sign/{bucket}", "many", Kind.MANAGE, _sign_many, "file", "objects", is_quiet=True
    ),
    _operation(
        "GET /object/sign/{bucket}/{name:path}", "by another's token", Kind.CLOSED, _fetch_signed, "file"
    ),
    _list("", Kind.READ, "{owner}", "file", "objects"),
    _list("{owner}/lab", Kind.READ, "notes.txt", "file"),
    _list("{owner}/secret", Kind.READ_PRIVATE, "notes.txt"),
    _list("{owner}/{objects}", Kind.READ, "c", "objects"),
]


def _remove_own(w: World, p: Person) -> Outcome:
    name = f"{p.id or 'nobody'}/{new_key()}"
    assert _is_ok(storage(w["service key"], "POST", f"/object/{BUCKET}/{name}", content=_CONTENT))
    answer = storage(p.caller, "DELETE", f"/object/{BUCKET}", json={"prefixes": [name]})
    return Outcome([answer], w.content(name) is None)


def _remove_left(w: World, p: Person) -> Outcome:
    """Delete an object that the caller's writing to an array of the owner has left."""
    data_id = w.one(
        "insert into public.datasets (user_id, writer, key, shape, dtype, block_size, expires_at) "
        "values (%s, %s, 'lab/left', '{0}', '<i4', 1, '-infinity') returning id",
        w.owner.id,
        p.id or w.bystander.id,
    )
    name = f"{w.owner.id}/{data_id}/c/0"
    w.database.execute("insert into storage.objects (bucket_id, name) values (%s, %s)", [BUCKET, name])
    answer = storage(p.caller, "DELETE", f"/object/{BUCKET}", json={"prefixes": [name]})
    # Seen for this alone, and read by nobody.
    w.database.execute("delete from public.datasets where id = %s", [data_id])
    gone = w.database.execute("delete from storage.objects where name = %s", [name]).rowcount == 0
    return Outcome([answer], gone)


_MOVE, _COPY = "POST /object/move", "POST /object/copy"

WRITING = [
    _operation("DELETE /object/{bucket}", "own file", Kind.OWN, _remove_own, is_quiet=True),
    _operation("DELETE /object/{bucket}", "that own writing has left", Kind.OWN, _remove_left, is_quiet=True),
    _remove("an object that was left", Kind.MANAGE, lambda w: w.things.left_object, "leftover", many=True),
    _operation("POST /object/{bucket}/{name:path}", "own file", Kind.OWN, _upload_own),
    _upload(
        "a new file of the owner",
        Kind.MANAGE,
        lambda w: f"{w.owner.id}/lab/new.txt",
        "no_new_file",
        upsert=False,
    ),
    _upload("over a shared file", Kind.MANAGE, _file, "file"),
    _upload("over a shared file", Kind.MANAGE, _file, "file", method="PUT"),
    _upload("over a private file", Kind.MANAGE, lambda w: f"{w.owner.id}/mine/a.txt", "mine"),
    _upload("over an object of an array", Kind.ADMINISTER, lambda w: w.things.object_names[0], "objects"),
    _upload(
        "beside the objects of an array",
        Kind.ADMINISTER,
        lambda w: f"{w.things.object_names[0].rpartition('/')[0]}/more",
        "objects",
        upsert=False,
    ),
    _upload(
        "of an array being written",
        Kind.STAGED,
        lambda w: name_of(w.things.begun_objects, 0),
        "begun_objects",
    ),
    _upload("of another's append", Kind.STAGED, lambda w: name_of(w.things.growing, 4), "growing"),
    _upload(
        "of what a former sharee was writing",
        Kind.ADMINISTER,
        lambda w: name_of(w.things.interrupted["ex-sharee", "objects"], 0),
        "interrupted",
    ),
    _move(
        _MOVE,
        "the owner's file",
        Kind.MANAGE,
        lambda w, p: (_file(w), f"{w.owner.id}/lab/{new_key()}"),
        "file",
    ),
    _move(
        _MOVE, "to the own folder", Kind.MANAGE, lambda w, p: (_file(w), f"{p.id or 'x'}/{new_key()}"), "file"
    ),
    _move(
        _MOVE,
        "into the owner's folder",
        Kind.MANAGE,
        lambda w, p: (_own_object(w, p), f"{w.owner.id}/lab/{new_key()}"),
        "file",
    ),
    _move(
        _MOVE,
        "an object of an array",
        Kind.ADMINISTER,
        lambda w, p: (w.things.object_names[0], f"{p.id or 'x'}/{new_key()}"),
        "objects",
    ),
    _move(
        _MOVE,
        "into what is being written",
        Kind.STAGED,
        lambda w, p: (_own_object(w, p), name_of(w.things.begun_objects, 3)),
        "begun_objects",
    ),
    _move(
        _COPY,
        "a private file",
        Kind.MANAGE,
        lambda w, p: (_secret_file(w), f"{p.id or 'x'}/{new_key()}"),
        copies=True,
    ),
    _move(
        _COPY,
        "into the owner's folder",
        Kind.MANAGE,
        lambda w, p: (_own_object(w, p), f"{w.owner.id}/lab/{new_key()}"),
        "file",
        copies=True,
    ),
    _move(
        _COPY,
        "beside an object of an array",
        Kind.ADMINISTER,
        lambda w, p: (_own_object(w, p), f"{w.things.object_names[0]}.copy"),
        "objects",
        copies=True,
    ),
    _remove("a shared file", Kind.MANAGE, _file, "file", many=False),
    _remove("a shared file", Kind.MANAGE, _file, "file", many=True),
    _remove(
        "an object of an array", Kind.ADMINISTER, lambda w: w.things.object_names[0], "objects", many=False
    ),
    _remove(
        "an object of an array", Kind.ADMINISTER, lambda w: w.things.object_names[0], "objects", many=True
    ),
    _remove(
        "an object being written",
        Kind.ADMINISTER,
        lambda w: name_of(w.things.begun_objects, 0),
        "begun_objects",
        many=True,
    ),
]

_TUS_ROUTE = "POST /upload/resumable"

RESUMABLE = [
    *(_options(path) for path in ("/upload/resumable", "/upload/resumable/", "/upload/resumable/{upload}")),
    _create_in(_TUS_ROUTE, "a file of the owner", Kind.MANAGE, _file, "file"),
    _create_in(
        _TUS_ROUTE, "an object of an array", Kind.ADMINISTER, lambda w: w.things.object_names[0], "objects"
    ),
    _create_in(
        _TUS_ROUTE,
        "of an array being written",
        Kind.STAGED,
        lambda w: name_of(w.things.begun_objects, 2),
        "begun_objects",
    ),
    _of_another("HEAD", "of another"),
    _of_another("PATCH", "of another"),
    _of_another("DELETE", "of another"),
]

BUCKETS = [
    _bucket("GET", "/bucket", Kind.ADMINISTER, lambda w, p, a: a.json()),
    _bucket("GET", "/bucket/{bucket}", Kind.ADMINISTER, lambda w, p, a: a.json()["id"] == BUCKET),
    _bucket("POST", "/bucket", Kind.ADMINISTER, lambda w, p, a: True, name="?", public=True),
    _bucket("PUT", "/bucket/{bucket}", Kind.ADMINISTER, lambda w, p, a: True, public=True),
    _bucket("POST", "/bucket/{bucket}/empty", Kind.ADMINISTER, lambda w, p, a: True),
    _bucket("DELETE", "/bucket/{bucket}", Kind.ADMINISTER, lambda w, p, a: not _has_spare(w)),
]

STORAGE = [*READING, *WRITING, *RESUMABLE, *BUCKETS]
