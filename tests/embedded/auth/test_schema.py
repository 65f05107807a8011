"""The `auth` schema, as an application's own SQL meets it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pytest


class TestSchema:
    """The schema `auth`, as an application's own SQL meets it under its role."""

    def asked(self, sql: psycopg.Connection, role: str, settings: dict[str, str]) -> tuple[Any, ...]:
        with sql.transaction():
            sql.execute(f"set local role {role}")
            for name, value in settings.items():
                sql.execute("select set_config(%s, %s, true)", [name, value])
            return sql.execute("select auth.uid(), auth.role(), auth.email(), auth.jwt()").fetchone()

    @pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
    def test_the_caller_is_whom_the_claims_name(self, sql, role):
        user_id, nobody = uuid.uuid4(), (None, None, None, None)
        claims = {"sub": str(user_id), "role": role, "email": "a@x.org", "app_metadata": {"a": [1]}}
        assert self.asked(sql, role, {}) == nobody
        now = self.asked(sql, role, {"request.jwt.claims": json.dumps(claims)})
        assert now == (user_id, role, "a@x.org", claims)
        # A setting that was local to an earlier transaction leaves an empty one.
        assert self.asked(sql, role, {}) == nobody
        assert self.asked(sql, role, {"request.jwt.claims": "{}"}) == (None, None, None, {})

    def test_the_settings_of_older_servers_come_first(self, sql):
        user_id = uuid.uuid4()
        old = {"sub": str(user_id), "role": "old", "email": "old@x.org"}
        settings = {f"request.jwt.claim.{name}": value for name, value in old.items()}
        settings["request.jwt.claims"] = json.dumps({"sub": str(uuid.uuid4()), "role": "r", "email": "e"})
        assert self.asked(sql, "authenticated", settings)[:3] == (user_id, "old", "old@x.org")
        whole = {"request.jwt.claim": '{"a": 1}', "request.jwt.claims": '{"a": 2}'}
        assert self.asked(sql, "authenticated", whole)[3] == {"a": 1}

    @pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
    @pytest.mark.parametrize("table", ["users", "identities", "sessions", "refresh_tokens"])
    def test_clients_reach_no_table(self, sql, role, table):
        for statement in (f"select from auth.{table}", f"delete from auth.{table}"):
            with sql.transaction(force_rollback=True):
                sql.execute(f"set local role {role}")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    sql.execute(statement)

    def test_rows_of_a_user_go_with_the_user(self, api, sql):
        account = api.signup()
        with sql.transaction(force_rollback=True):
            sql.execute("create table public.things (of uuid references auth.users on delete cascade)")
            with pytest.raises(psycopg.errors.ForeignKeyViolation), sql.transaction():
                sql.execute("insert into public.things values (%s)", [uuid.uuid4()])
            sql.execute("insert into public.things values (%s)", [account.id])
            sql.execute("delete from auth.users where id = %s", [account.id])
            assert sql.execute("select count(*) from public.things").fetchone() == (0,)

    def test_the_schema_is_not_the_applications(self, sql):
        for statement in (
            "alter table auth.users add column mine text",
            "create table auth.mine ()",
            "create or replace function auth.uid() returns uuid language sql return null",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), sql.transaction():
                sql.execute(statement)
