-- tensorage: several changes in one step, and several arrays in one look.

-- Transactions -------------------------------------------------------------------------------------
--
-- The steps of a transaction are the requests that would make the changes one by one. The functions that answer them know
-- by a setting that they are steps: answers are not kept, nothing is swept, and totals are settled once, at the end.

-- Locks all that the steps of a transaction change, in the order that all requests keep to: staged datasets, keys, arrays.
-- Raises if somebody else has changed what is assigned to, replaced or deleted. `asked` has
--   staged     ids of staged datasets that are committed
--   keys       keys of the caller that are stored, appended to or deleted
--   appended   arrays of others that are appended to: {"key", "owner"}
--   assigned   arrays that are assigned to, as they were opened, and those of Storage that are appended to:
--              {"data_id", "version", null if any will do, "key" for a message}
--   replaced   keys of the caller whose arrays are replaced or deleted
--   read       those of them that the caller has read meanwhile, as they were then: {"key", "data_id", "version"}
--   open_for   seconds since the caller began to make up the transaction
create or replace function tensorage.lock_for_steps(asked json) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := tensorage.me();
  keys text[] := array(select json_array_elements_text(asked -> 'keys'));
  replaced text[] := array(select json_array_elements_text(asked -> 'replaced'));
  staged bigint[] := array(select json_array_elements_text(asked -> 'staged')::bigint);
  others bigint[];
  assigned json;
  target public.datasets;
  changed text;
begin
  perform from public.datasets d where d.id = any (staged) and d.writer = me order by d.id for update;
  -- A step that waited for a key that is just renamed would hold the lock of shares meanwhile.
  perform pg_advisory_xact_lock_shared(tensorage.renamings());
  -- All transactions of all users share PostgreSQL's table of locks, which has room for some thousands.
  if cardinality(keys) > 256 then
    perform tensorage.lock_all_keys();
  else
    perform tensorage.lock_key(k.key) from (select distinct k collate "C" as key from unnest(keys) k order by 1) k;
  end if;
  -- A stranger's arrays are not locked: the caller's right is looked at first.
  others := array(
    select (tensorage.find(a ->> 'key', a ->> 'owner', to_write => true)).id from json_array_elements(asked -> 'appended') a
    union
    select d.id from json_array_elements(asked -> 'assigned') a, lateral (
      select * from public.datasets s where s.id = (a ->> 'data_id')::bigint offset 0) d
     where tensorage.may_use(d.user_id, d.key, true));
  others := others || array(select d.id from public.datasets d
                             where d.user_id = me and d.key = any (keys) and d.state = 'committed');
  perform from public.datasets d where d.id = any (others) order by d.id for update;
  for assigned in select json_array_elements(asked -> 'assigned') loop
    continue when assigned ->> 'version' is null;
    begin
      -- Its own engine: the step says which one it is for. An array that is gone has changed.
      target := tensorage.assignable(
        (assigned ->> 'data_id')::bigint, (assigned ->> 'version')::bigint,
        coalesce((select t.engine from public.datasets t where t.id = (assigned ->> 'data_id')::bigint), 'database'));
      -- A single assignment to an array with a fill value may meet others. One that belongs together with other changes may not.
      if (assigned ->> 'version')::bigint between target.stable_since and target.version then
        continue;
      end if;
    exception when sqlstate 'TS003' then
      null;
    end;
    raise exception using errcode = 'TS003',
      message = format('the array %L was changed while the transaction was open', coalesce(assigned ->> 'key', assigned ->> 'data_id'));
  end loop;
  select d.key into changed from public.datasets d
   where d.user_id = me and d.key = any (replaced) and d.state = 'committed'
     and d.updated_at > now() - make_interval(secs => (asked ->> 'open_for')::float8) limit 1;
  -- The request may have been long on its way: a change that came meanwhile is then not found by its time.
  if changed is null then
    select r.key into changed from json_to_recordset(asked -> 'read') r(key text, data_id bigint, version bigint)
      left join lateral tensorage.find(r.key, null) f on true
     where (f.id = r.data_id and r.version between f.stable_since and f.version) is not true limit 1;
  end if;
  if changed is not null then
    raise exception using errcode = 'TS003',
      message = format('the array %L was changed while the transaction was open', changed);
  end if;
  perform set_config('tensorage.locked', others::text, true);
end
$$;

-- Makes several changes in one step: all of them, or none. Meta: operation, steps, and what tensorage.lock_for_steps needs. A
-- step is {"function", and "bytes" of its binary request or else its arguments}. The binary requests follow in order.
create or replace function public.tensorage_transact(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  operation uuid := (h.meta ->> 'operation')::uuid;
  before json := tensorage.answered(operation);
  me uuid := tensorage.me();
  at int := h.elements_at;
  steps int := 0;
  step json;
  request bytea;
begin
  if before is not null then
    return before;
  end if;
  perform tensorage.lock_for_steps(h.meta);
  perform set_config('tensorage.in_transaction', 'on', true);
  for step in select json_array_elements(h.meta -> 'steps') loop
    request := substr($1, at + 1, coalesce((step ->> 'bytes')::int, 0));
    case step ->> 'function'
      when 'tensorage_store' then perform public.tensorage_store(request);
      when 'tensorage_append' then perform public.tensorage_append(request);
      when 'tensorage_assign' then perform public.tensorage_assign(request);
      when 'tensorage_commit' then perform public.tensorage_commit((step ->> 'data_id')::bigint, null, step -> 'shards');
      when 'tensorage_store_tails' then perform public.tensorage_store_tails(request);
      when 'tensorage_append_tails' then
        perform public.tensorage_append_tails(
          (step ->> 'data_id')::bigint, array(select json_array_elements_text(step -> 'shape')::bigint),
          (step ->> 'base_rows')::bigint, step -> 'shards');
      when 'tensorage_remove' then perform public.tensorage_remove(step ->> 'key');
      else
        raise exception using errcode = 'TS006', message = format('%L is no step of a transaction', step ->> 'function');
    end case;
    at := at + octet_length(request);
    steps := steps + 1;
  end loop;
  if at <> octet_length($1) then
    raise exception using errcode = 'TS006', message = 'the steps of the transaction contradict the length of the request';
  end if;
  perform set_config('tensorage.in_transaction', '', true);
  perform set_config('tensorage.locked', '', true);
  return tensorage.answer(operation, json_build_object(
    'steps', steps, 'left', tensorage.sweep(256, greatest(octet_length($1), 1048576)), 'objects_left', tensorage.objects_left()));
end
$$;

-- One look at several arrays -----------------------------------------------------------------------

-- Some bytes, and behind them the elements of an array, all of them in order. The sizes of blocks are known before they are
-- read, and no variable holds the answer, which would copy it.
create or replace function tensorage.whole(d public.datasets, head bytea default '') returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $$
declare
  found bigint;
begin
  if d.fill is not null then
    return head || tensorage.check_answer(d, trunc(d.nbytes / d.itemsize),
                                          tensorage.gather(d, array[0], array[trunc(d.nbytes / d.itemsize)::bigint]));
  end if;
  found := (select coalesce(sum(octet_length(t.tensor)), 0) from public.tensors t where t.data_id = d.id);
  if found <> d.nbytes then
    raise exception using errcode = 'TS004', message = format('%s of the %s bytes asked for are there', found, d.nbytes),
      hint = 'Blocks of the array were deleted behind its back.';
  end if;
  return (
    select head || coalesce(string_agg(b.tensor, ''), '') from (
      select t.tensor from public.tensors t where t.data_id = d.id order by t.index offset 0) b);
end
$$;

-- Arrays by their keys, or the array under a key with all below it: as they are at one moment, since the function is
-- stable. At most 10,000 of them. Elements come along for arrays of the database, and the records of few shards for arrays of
-- Storage, as long as there is room for `max_bytes`. 4 bytes: length of the JSON that follows, [{"entry": description, "elements":
-- their bytes, or "records": bytes of records; null if they do not come along}]; then the elements or records, one array after
-- the other. Raises for a key without an array.
create or replace function public.tensorage_read_many(
  keys text[] default null, below text default null, owner text default null, max_bytes int default 8388608)
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  others uuid[] := tensorage.whose(owner);
  room numeric := least(max_bytes, 16777216);
  key text;
  d public.datasets;
  entries json[] := '{}';
  entry json;
  entry_bytes bigint := 0;
  parts bytea[] := '{}';
  part bytea;
  head bytea;
begin
  if below is not null then
    keys := below || array(select k from (
      select tensorage.own_keys(below || '/', '', 10000) as k where others is null
      union all select tensorage.shared_keys(others, below || '/', '', 10000) where others is not null) s);
  end if;
  if cardinality(keys) > 10000 then
    raise exception using errcode = 'TS006', message = 'more than 10000 arrays are too many for one look',
      hint = 'Ask for fewer at a time.';
  end if;
  foreach key in array coalesce(keys, '{}') loop
    d := tensorage.find(key, owner);
    if d.id is null then
      continue when below is not null;
      perform tensorage.raise_missing(key, owner);
    end if;
    part := null;
    if d.engine = 'storage' then
      part := tensorage.all_shard_records(d);
      part := case when octet_length(part) <= room then part end;
    elsif not tensorage.is_ragged(d.dtype) and d.nbytes <= room then
      if cardinality(keys) = 1 then
        head := convert_to(json_build_array(json_build_object(
          'entry', tensorage.describe(d), 'elements', trunc(d.nbytes)))::text, 'UTF8');
        return tensorage.whole(d, int4send(octet_length(head)) || head);
      end if;
      part := tensorage.whole(d);
    end if;
    entry := json_build_object(
      'entry', tensorage.describe(d), case d.engine when 'storage' then 'records' else 'elements' end, octet_length(part));
    entry_bytes := entry_bytes + octet_length(entry::text);
    -- The server holds the answer several times, and each entry may have a megabyte of attributes.
    if entry_bytes > 33554432 then
      raise exception using errcode = 'TS006', message = 'the attributes of these arrays are too many bytes for one look',
        hint = 'Ask for fewer arrays at a time.';
    end if;
    entries := entries || entry;
    if part is not null then
      room := room - octet_length(part);
      parts := parts || part;
    end if;
  end loop;
  head := convert_to(array_to_json(entries)::text, 'UTF8');
  return int4send(octet_length(head)) || head || coalesce((select string_agg(e, '' order by n)
    from unnest(parts) with ordinality u(e, n)), '');
end
$$;
