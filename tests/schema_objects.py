"""Everything that the migrations make in a database, written down so that two schemas can be compared."""

from __future__ import annotations

from typing import Any

import psycopg

#: An access list in a fixed order, and with the built-in default in place of none.
_ACL = "array(select unnest(coalesce({acl}, acldefault('{kind}', {owner})))::text order by 1)::text"


def _acl(acl: str, kind: str, owner: str) -> str:
    return _ACL.format(acl=acl, kind=kind, owner=owner)


_QUERIES = {
    "schema": f"""
        select n.nspname, '', jsonb_build_object(
            'owner', n.nspowner::regrole, 'acl', {_acl("n.nspacl", "n", "n.nspowner")},
            'comment', obj_description(n.oid, 'pg_namespace'))::text
          from pg_namespace n where n.oid in (select oid from ours)""",
    # A net under the other queries: objects of any class that belong to the two schemas.
    "member": """
        select pg_describe_object(d.classid, d.objid, d.objsubid), '', '' from pg_depend d
          where d.refclassid = 'pg_namespace'::regclass and d.refobjid in (select oid from ours)""",
    "relation": f"""
        select c.oid::regclass::text, c.relkind::text, jsonb_build_object(
            'owner', c.relowner::regrole, 'persistence', c.relpersistence, 'options', c.reloptions,
            'row security', c.relrowsecurity, 'forced', c.relforcerowsecurity, 'replica identity', c.relreplident,
            'partition', c.relispartition, 'access method', c.relam, 'tablespace', c.reltablespace,
            'acl', case when c.relkind = 'S' then {_acl("c.relacl", "s", "c.relowner")}
                        when c.relkind <> 'i' then {_acl("c.relacl", "r", "c.relowner")} end,
            'comment', obj_description(c.oid, 'pg_class'))::text
          from pg_class c where c.relnamespace in (select oid from ours)""",
    "column": """
        select c.oid::regclass::text, a.attname::text, jsonb_build_object(
            'type', format_type(a.atttypid, a.atttypmod), 'collation', a.attcollation::regcollation,
            'not null', a.attnotnull, 'identity', a.attidentity, 'generated', a.attgenerated,
            'default', pg_get_expr(e.adbin, e.adrelid), 'storage', a.attstorage, 'compression', a.attcompression,
            'options', a.attoptions, 'acl', a.attacl, 'comment', col_description(c.oid, a.attnum))::text
          from pg_class c join pg_attribute a on a.attrelid = c.oid
               left join pg_attrdef e on e.adrelid = c.oid and e.adnum = a.attnum
          where c.relnamespace in (select oid from ours) and c.relkind <> 'i'
            and a.attnum > 0 and not a.attisdropped""",
    "column order": """
        select c.oid::regclass::text, '', string_agg(a.attname, ', ' order by a.attnum)
          from pg_class c join pg_attribute a on a.attrelid = c.oid
          where c.relnamespace in (select oid from ours) and a.attnum > 0 and not a.attisdropped and c.relkind <> 'i'
          group by c.oid""",
    "sequence": """
        select s.seqrelid::regclass::text, '', (to_jsonb(s) - 'seqrelid')::text from pg_sequence s
          join pg_class c on c.oid = s.seqrelid where c.relnamespace in (select oid from ours)""",
    "constraint": """
        select case when k.conrelid <> 0 then k.conrelid::regclass::text else k.contypid::regtype::text end,
            k.conname::text, jsonb_build_object('definition', pg_get_constraintdef(k.oid), 'validated', k.convalidated,
                               'comment', obj_description(k.oid, 'pg_constraint'))::text
          from pg_constraint k where k.connamespace in (select oid from ours)""",
    "index": """
        select i.indrelid::regclass::text, i.indexrelid::regclass::text, jsonb_build_object(
            'definition', pg_get_indexdef(i.indexrelid), 'valid', i.indisvalid, 'clustered', i.indisclustered,
            'replica identity', i.indisreplident)::text
          from pg_index i join pg_class c on c.oid = i.indexrelid where c.relnamespace in (select oid from ours)""",
    "rule": """
        select schemaname || '.' || tablename, rulename::text, definition from pg_rules
          where schemaname <> 'pg_catalog'""",
    # Triggers on any table: some are on storage.objects.
    "trigger": """
        select t.tgrelid::regclass::text, t.tgname::text, jsonb_build_object(
            'definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled,
            'comment', obj_description(t.oid, 'pg_trigger'))::text
          from pg_trigger t where not t.tgisinternal""",
    "event trigger": "select evtname::text, '', to_jsonb(e)::text from pg_event_trigger e",
    "publication": "select pubname::text, schemaname || '.' || tablename, '' from pg_publication_tables",
    "policy": """
        select p.schemaname || '.' || p.tablename, p.policyname::text, to_jsonb(p)::text from pg_policies p""",
    "function": f"""
        select p.oid::regprocedure::text, pg_get_functiondef(p.oid), jsonb_build_object(
            'owner', p.proowner::regrole, 'acl', {_acl("p.proacl", "f", "p.proowner")},
            'comment', obj_description(p.oid, 'pg_proc'))::text
          from pg_proc p where p.pronamespace in (select oid from ours)""",
    "type": f"""
        select t.oid::regtype::text, t.typtype::text, jsonb_build_object(
            'owner', t.typowner::regrole, 'of', format_type(t.typbasetype, t.typtypmod), 'not null', t.typnotnull,
            'default', t.typdefault, 'collation', t.typcollation::regcollation,
            'acl', {_acl("t.typacl", "T", "t.typowner")}, 'comment', obj_description(t.oid, 'pg_type'))::text
          from pg_type t where t.typnamespace in (select oid from ours)""",
    "default privileges": """
        select d.defaclnamespace::regnamespace::text || d.defaclobjtype::text, d.defaclrole::regrole::text,
            array(select unnest(d.defaclacl)::text order by 1)::text from pg_default_acl d""",
    "bucket": "select b.id, '', (to_jsonb(b) - 'created_at' - 'updated_at')::text from storage.buckets b",
    "settings": "select 'tensorage.settings', '', to_jsonb(s)::text from tensorage.settings s",
}

_OURS = "with ours as (select oid from pg_namespace where nspname in ('public', 'tensorage'))"


def schema_objects(connection: psycopg.Connection[tuple[Any, ...]]) -> list[tuple[str, ...]]:
    """List all objects that the migrations made, with each property that PostgreSQL keeps of them.

    Parameters
    ----------
    connection
        To a database whose schema ``public`` holds nothing but what tensorage makes there.

    Returns
    -------
    list of tuple of str
        Kind, name, part and definition of each, sorted.
    """
    rows: list[tuple[str, ...]] = []
    for kind, query in _QUERIES.items():
        rows += [(kind, *row) for row in connection.execute(f"{_OURS} {query}").fetchall()]
    return sorted(rows)
