"""Seconds from the first line of a program to the first element of an array, by one peer."""

from __future__ import annotations

import time

_BEGIN = time.perf_counter()

import json  # noqa: E402 - what is imported is measured
import sys  # noqa: E402
from typing import Any  # noqa: E402


def tensorage(url: str, key: str, email: str, password: str) -> float:
    from tensorage import BackendSession

    session = BackendSession(email, password, url, key)
    return float(session().open("bulk")[0, 0, 0])


def straight(url: str) -> float:
    import asyncio
    import struct

    import asyncpg

    async def read() -> bytes:
        connection = await asyncpg.connect(url)
        element: bytes = await connection.fetchval(
            "select substr(block, 1, 4) from straight where id = 1 and index = 0"
        )
        await connection.close()
        return element

    return float(struct.unpack("<f", asyncio.run(read()))[0])


def hsds(domain: str, **access: str) -> float:
    import h5pyd

    return float(h5pyd.File(domain, "r", **access)["images"][0, 0, 0])


def json_floats(url: str, key: str, email: str, password: str, table: str) -> float:
    from supabase import create_client

    client = create_client(url, key)
    client.auth.sign_in_with_password({"email": email, "password": password})
    query = client.table(table).select("data").eq("key", "images").eq("index", 0)
    return float(query.execute().data[0]["data"][0])


def main() -> None:
    settings: dict[str, Any] = json.load(sys.stdin)
    element = {"tensorage": tensorage, "straight": straight, "hsds": hsds, "json_floats": json_floats}[
        settings.pop("peer")
    ](**settings)
    print(json.dumps({"took_s": time.perf_counter() - _BEGIN, "element": element}))


if __name__ == "__main__":
    main()
