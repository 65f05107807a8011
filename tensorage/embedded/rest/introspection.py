"""Queries of PostgreSQL's own tables, which describe the exposed schema."""

from __future__ import annotations

from typing import Final

#: One row a column: its table or view, the possible actions there, and the column's type and default.
COLUMNS: Final = """
with recursive base as (
  select oid as type_id, oid as base_id, typtype, typbasetype from pg_catalog.pg_type
  union all
  select base.type_id, t.oid, t.typtype, t.typbasetype
  from base join pg_catalog.pg_type t on t.oid = base.typbasetype
  where base.typtype = 'd'
)
select
  c.relname::text as table_name,
  c.relkind in ('v', 'm') as is_view,
  pg_catalog.pg_relation_is_updatable(c.oid, true) as actions,
  a.attname::text as column_name,
  pg_catalog.format_type(a.atttypid, a.atttypmod) as type,
  pg_catalog.format_type(base.base_id, -1) as comparison_type,
  case when a.attgenerated = '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as default_expression,
  pg_catalog.array_position(k.conkey, a.attnum) as key_position,
  (select pg_catalog.format('pg_catalog.nextval(%L::pg_catalog.regclass)', p.objid::pg_catalog.regclass)
   from pg_catalog.pg_depend p
   where a.attidentity <> '' and p.deptype = 'i' and p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
     and p.refobjid = c.oid and p.refobjsubid = a.attnum) as identity_expression
from pg_catalog.pg_class c
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
join base on base.type_id = a.atttypid and base.typtype <> 'd'
left join pg_catalog.pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
left join pg_catalog.pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
where c.relnamespace = $1::text::pg_catalog.regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
order by c.relname, a.attnum
"""

#: One row a function: its parameters and its result.
ROUTINES: Final = """
select
  p.proname::text as name,
  coalesce(p.proargnames, '{}')::text[] as argument_names,
  coalesce(p.proargmodes::text[], '{}') as argument_modes,
  array(
    select pg_catalog.format_type(argument, -1)
    from pg_catalog.unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality u(argument, n)
    order by n
  ) as argument_types,
  p.pronargs::int as input_count,
  p.pronargdefaults::int as default_count,
  p.provariadic <> 0 as is_variadic,
  p.provolatile = 'v' as is_volatile,
  p.proretset as returns_set,
  p.prorettype = 'pg_catalog.void'::pg_catalog.regtype as returns_void,
  (t.typtype = 'c' or b.typtype = 'c' or p.prorettype = 'pg_catalog.record'::pg_catalog.regtype
    or coalesce(p.proargmodes::text[] && '{o,b,t}', false)) as returns_rows,
  case when t.typtype = 'd' and t.typname ~ '^[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+$'
    then t.typname::text end as media_type,
  pg_catalog.format_type(b.oid, -1) as return_base_type,
  array(
    select a.attname::text || e'\\x01'
      || pg_catalog.format_type(coalesce(nullif(y.typbasetype, 0), y.oid), -1)
    from pg_catalog.pg_attribute a join pg_catalog.pg_type y on y.oid = a.atttypid
    where a.attrelid = b.typrelid and a.attnum > 0 and not a.attisdropped
  ) as row_columns,
  coalesce(p.proconfig, '{}')::text[] as settings
from pg_catalog.pg_proc p
join pg_catalog.pg_type t on t.oid = p.prorettype
join pg_catalog.pg_type b on b.oid = case when t.typtype = 'd' then t.typbasetype else t.oid end
where p.pronamespace = $1::text::pg_catalog.regnamespace and p.prokind = 'f'
  and p.prorettype <> all (array['pg_catalog.trigger', 'pg_catalog.event_trigger']::pg_catalog.regtype[])
order by p.proname, p.oid
"""

#: Settings of ``alter role ... set``, of the roles that a request can take. Only settings that a role could make for
#: itself are included: the others PostgreSQL would refuse in a request's transaction.
ROLE_SETTINGS: Final = """
select r.rolname::text as role, s.setting as setting
from pg_catalog.pg_db_role_setting d
join pg_catalog.pg_roles r on r.oid = d.setrole
cross join pg_catalog.unnest(d.setconfig) as s(setting)
left join pg_catalog.pg_settings g on g.name = pg_catalog.split_part(s.setting, '=', 1)
where d.setdatabase in (0, (select b.oid from pg_catalog.pg_database b where b.datname = current_database()))
  and pg_catalog.pg_has_role(session_user, r.oid, 'member') and r.rolname <> session_user
  and (g.context = 'user' or g.name is null and s.setting like '%.%' and s.setting not like 'pgrst.%')
order by d.setdatabase
"""
