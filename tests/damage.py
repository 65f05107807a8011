"""Damage to an object of an array that its owner did not do."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tensorage.backend.wire.http import tls_context
from tensorage.embedded import control

Sql = psycopg.Connection[tuple[Any, ...]]


class Damage:
    """Ways to harm an object of an array of Storage, behind the catalogue's back.

    Parameters
    ----------
    name
        Name of the object: a shard of two chunks, of 500 bytes and more each.
    """

    def __init__(self, backend: control.Running, database: Sql, name: str) -> None:
        self._backend = backend
        self._database = database
        self.name = name

    @property
    def file(self) -> Path:
        query = "select version from storage.objects where bucket_id = 'tensors' and name = %s"
        row = self._database.execute(query, [self.name]).fetchone()
        assert row is not None
        return self._backend.data_dir / "storage" / "objects" / str(row[0])

    def put_object(self, content: bytes) -> None:
        """Another object of the same name, as the administrator may make one."""
        key = self._backend.service_role_key
        answer = httpx.post(
            f"{self._backend.api_url}/storage/v1/object/tensors/{self.name}",
            content=content,
            headers={"apikey": key, "Authorization": f"Bearer {key}", "x-upsert": "true"},
            verify=tls_context(self._backend.api_url),
        )
        assert answer.status_code == 200, answer.text

    def shorten(self) -> None:
        self.put_object(self.file.read_bytes()[:-150])

    def cut_off(self) -> None:
        self.put_object(self.file.read_bytes()[:300])

    def overwrite(self) -> None:
        self.put_object(bytes(self.file.stat().st_size))

    def flip_a_bit(self, at: int = 750) -> None:
        content = bytearray(self.file.read_bytes())
        content[at] ^= 4
        self.file.write_bytes(content)

    def truncate_the_file(self) -> None:
        self.file.write_bytes(self.file.read_bytes()[:300])

    def delete_the_file(self) -> None:
        self.file.unlink()

    def delete_the_entry(self) -> None:
        self._database.execute("delete from storage.objects where name = %s", [self.name])

    def delete_the_shard(self) -> None:
        self._database.execute("delete from public.shards where name = %s", [self.name])

    def set_index(self, index: bytes) -> None:
        self._database.execute("update public.shards set index = %s where name = %s", [index, self.name])

    def index(self) -> bytes:
        row = self._database.execute(
            "select index from public.shards where name = %s", [self.name]
        ).fetchone()
        assert row is not None
        return bytes(row[0])

    def empty_the_index(self) -> None:
        self.set_index(b"")

    def halve_the_index(self) -> None:
        self.set_index(self.index()[: len(self.index()) // 2])

    def move_the_chunks(self) -> None:
        self.set_index(bytes(number ^ (not at % 8) for at, number in enumerate(self.index())))

    def index_behind_the_end(self) -> None:
        self.set_index(self._first_range() + struct.pack("<QQ", 2**63, 2**63))

    def half_of_an_empty_chunk(self) -> None:
        self.set_index(self._first_range() + struct.pack("<QQ", 0, 2**64 - 1))

    def _first_range(self) -> bytes:
        """Offset and length of the first of the object's two chunks, whose lengths the index has."""
        return struct.pack("<QQ", 0, struct.unpack("<2H", self.index())[0])
