-- tensorage: who did what to which array, and when.

-- Adds a record of something that the caller has done to an array of `owner`. The address of somebody else is kept if the
-- owner shares by it: the owner knows it then.
create or replace function tensorage.note(owner uuid, action text, key text, detail text default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
  me uuid := auth.uid();
  address text;
begin
  if me <> note.owner then
    address := (select s.reader from tensorage.shares s
                 where s.user_id = note.owner and s.pattern = any (array(select tensorage.patterns_of(note.key)))
                   and s.reader = tensorage.address_of(me) limit 1);
  end if;
  insert into tensorage.audit (user_id, actor, actor_address, action, key, detail)
    values (note.owner, me, address, note.action, note.key, note.detail);
end
$$;

-- Notes that the caller has changed an array. Changes by one user that follow each other within a minute are one record, of
-- the first of them: a training loop that appends all day would fill the table otherwise.
create or replace function tensorage.note_change(d public.datasets) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $$
declare
  last tensorage.audit;
begin
  select * into last from tensorage.audit a where a.user_id = d.user_id and a.key = d.key order by a.id desc limit 1;
  if (last.action = 'changed' and last.actor = auth.uid() and last.at > now() - interval '1 minute') is not true then
    perform tensorage.note(d.user_id, 'changed', d.key);
  end if;
end
$$;

-- Deletes some of the caller's records that are older than the project keeps them.
create or replace function tensorage.forget_records(max_records int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := auth.uid();
begin
  delete from tensorage.audit a
   where a.id = any (array(
     select o.id from tensorage.audit o
      where o.user_id = me and o.at < now() - (select s.audit_days * interval '1 day' from tensorage.settings s where s.only_row)
      order by o.at, o.id limit max_records for update skip locked));
end
$$;

-- A page of records of the caller's arrays, the latest first: of one key or of all, and before a given record.
create or replace function public.tensorage_audit(
  key text default null, before bigint default null, max_rows int default 1000) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  my_address text := tensorage.address_of(me);
begin
  return (
    select coalesce(json_agg(json_build_object(
             'id', r.id, 'at', r.at, 'actor_id', r.actor,
             'actor', case when r.actor = me then my_address else r.actor_address end,
             'action', r.action, 'key', r.key, 'detail', r.detail) order by r.id desc), '[]')
      from (select * from tensorage.audit a
             where a.user_id = me and (tensorage_audit.key is null or a.key = tensorage_audit.key)
               and (before is null or a.id < before)
             order by a.id desc limit least(max_rows, 1000)) r);
end
$$;
