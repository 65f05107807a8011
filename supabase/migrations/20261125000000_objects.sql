-- tensorage, schema version 3: arrays that are kept as objects of Storage.
--
-- Changes what the migrations before it made, under the same rules: functions begin by comparing the owner with the
-- caller, and it may run twice.
--
-- An array of Storage is cut into shards, each of which is one object, or none if all its elements are the fill value.
-- The catalogue, here, says which objects these are; nothing ever lists them to find out. An object is never written
-- over once it is part of an array: what changes an array makes new objects in a folder of its own, the number of the
-- staged dataset, and the commit puts them in place of the old ones, in one transaction. The old ones are deleted
-- afterwards, by the client, since no SQL can do that.
--
-- A further SQLSTATE of class TS:
--   TS010 the array is kept by another engine (its description is the error's detail)

-- Tables ------------------------------------------------------------------------------------------

alter table public.datasets
  -- Of an array of Storage: its metadata of Zarr v3, without its shape, attributes and names of dimensions. Not jsonb,
  -- whose numbers know no -0.0.
  add column if not exists zarr json
    check (json_typeof(zarr) = 'object' and octet_length(zarr::text) <= 65536),
  -- Of a staged append to such an array: the rows that it is added behind.
  add column if not exists base_rows bigint;
-- Nobody could write to Storage before: what says so has its elements in rows.
update public.datasets set engine = 'database' where engine = 'storage' and zarr is null;
alter table public.datasets drop constraint if exists zarr_is_of_storage;
alter table public.datasets add constraint zarr_is_of_storage check ((engine = 'storage') = (zarr is not null));

create table if not exists public.shards (
  data_id bigint not null references public.datasets on delete cascade,
  -- The dataset's owner again, so that the policy is one comparison.
  user_id uuid not null,
  -- In C order of the grid of shards.
  number bigint not null check (number >= 0),
  -- Of the object in the bucket; null: all elements are the fill value, and there is none.
  name text collate "C" check (octet_length(name) <= 1024),
  nbytes bigint not null check (nbytes >= 0),
  -- Offset and length of each chunk in the object, as little-endian uint64; empty: the object is one chunk. No quota
  -- counts them: as many chunks as a client cuts a shard into are the most.
  index bytea not null check (octet_length(index) % 16 = 0 and octet_length(index) <= 16 * 65536),
  -- While it is being written: the rows of axis 0 that are there so far; null: all of its rows.
  filled int8multirange,
  -- Of a staged append or assignment: the object that it is made from and takes the place of, '' for a shard without
  -- one; null: the array has no such shard yet.
  based_on text collate "C",
  primary key (data_id, number),
  constraint an_object_has_bytes check ((name is null) = (nbytes = 0)),
  constraint objects_are_in_the_folder_of_the_user check (starts_with(name, user_id::text || '/'))
);
create unique index if not exists shards_name on public.shards (name);

alter table public.shards enable row level security;
drop policy if exists "shards of own and shared datasets are visible" on public.shards;
create policy "shards of own and shared datasets are visible" on public.shards for select to authenticated
  using (
    user_id = (select auth.uid())
    -- Only reached for the shards of somebody else. "offset 0" has each of them looked up: for a page of them,
    -- PostgreSQL would rather read all datasets that are shared in the project.
    or exists (select from public.datasets d where d.id = data_id and d.is_shared and d.state = 'committed' offset 0)
  );
revoke all on public.shards from public, anon, authenticated;
grant select on public.shards to authenticated;
grant select, insert, update, delete on public.shards to service_role;

-- The bucket ----------------------------------------------------------------------------------------

-- Folders that are named by a number hold arrays, all others files.
create or replace function tensorage.folder_of_array(object_name text) returns text
language sql immutable set search_path = '' as $$
  select case when f.parts[2] ~ '^[0-9]+$' and cardinality(f.parts) > 2 then f.parts[2] end
    from (select string_to_array(object_name, '/') as parts) f
$$;

-- Whether an object may be made or written over: a file always, one of an array while that is being written. Nothing
-- that a request does late, or somebody by hand, changes an array that can be read.
create or replace function tensorage.may_write_object(object_name text) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  folder text := tensorage.folder_of_array(object_name);
begin
  if folder is null then
    return true;
  elsif folder !~ '^[1-9][0-9]{0,17}$' then
    return false;
  end if;
  return exists (
    select from public.datasets d
     where d.id = folder::bigint and d.user_id = (select auth.uid()) and d.engine = 'storage' and d.state = 'staged'
       and d.expires_at > now());
end
$$;

-- Whether an object may be deleted: unless it is part of an array.
create or replace function tensorage.may_delete_object(object_name text) returns boolean
language sql stable set search_path = '' as $$
  select not exists (
    select from public.shards s join public.datasets d on d.id = s.data_id
     where s.name = object_name and (d.state = 'committed' or d.expires_at > now()))
$$;

-- Whether an object is part of an array that is shared with every signed-in user.
create or replace function tensorage.is_shared_object(object_name text) returns boolean
language sql stable set search_path = '' as $$
  select exists (
    select from public.shards s join public.datasets d on d.id = s.data_id
     where s.name = object_name and d.is_shared and d.state = 'committed')
$$;

drop policy if exists "tensorage: read arrays that are shared" on storage.objects;
create policy "tensorage: read arrays that are shared" on storage.objects for select to authenticated
  using (bucket_id = 'tensors' and tensorage.is_shared_object(name));

drop policy if exists "tensorage: add to own folder" on storage.objects;
create policy "tensorage: add to own folder" on storage.objects for insert to authenticated
  with check (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text
              and tensorage.may_write_object(name));

drop policy if exists "tensorage: change in own folder" on storage.objects;
create policy "tensorage: change in own folder" on storage.objects for update to authenticated
  using (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text
         and tensorage.may_write_object(name))
  with check (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text
              and tensorage.may_write_object(name));

drop policy if exists "tensorage: delete from own folder" on storage.objects;
create policy "tensorage: delete from own folder" on storage.objects for delete to authenticated
  using (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text
         and tensorage.may_delete_object(name));

-- Inner functions: describing, staging, sweeping --------------------------------------------------------

create or replace function tensorage.describe(d public.datasets) returns json
language sql stable set search_path = '' as $$
  select json_build_object(
    'id', d.id, 'user_id', d.user_id, 'owner', d.owner, 'key', d.key, 'shape', d.shape, 'dtype', d.dtype,
    'chunk', d.chunk, 'engine', d.engine, 'is_shared', d.is_shared, 'attrs', d.attrs, 'dims', d.dims,
    'state', d.state, 'version', d.version, 'created_at', d.created_at, 'updated_at', d.updated_at,
    -- As text: on its way through jsonb, a number could change.
    'zarr', d.zarr::text)
$$;

-- Neither attributes nor metadata: a million appends would keep a million copies of them.
create or replace function tensorage.answered(operation uuid) returns json
language plpgsql set search_path = '' as $$
begin
  if operation is null then
    return null;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(format('tensorage operation %s of %s', operation, tensorage.me()), 0));
  return (select o.answer::jsonb || coalesce(
                   (select jsonb_build_object('attrs', d.attrs, 'zarr', d.zarr::text) from public.datasets d
                     where o.answer -> 'attrs' is not null and d.id = (o.answer ->> 'id')::bigint), '{}')
            from tensorage.operations o where o.id = operation and o.user_id = auth.uid());
end
$$;

create or replace function tensorage.answer(operation uuid, answer json) returns json
language plpgsql set search_path = '' as $$
begin
  if operation is not null then
    insert into tensorage.operations (id, user_id, answer)
      values (operation, auth.uid(),
              case when answer -> 'attrs' is null then answer
                   else (answer::jsonb || '{"attrs": {}, "zarr": null}')::json end);
    -- Two for the one: appends sweep nothing, and whoever does nothing else would keep all answers for ever.
    perform tensorage.forget(2);
  end if;
  return answer;
end
$$;

-- Deletes blocks of the caller's expired datasets of the database, at most max_blocks of them: how many such datasets
-- are left. Waits for nobody: those who write what is to be swept may be waiting for the array that this transaction
-- replaces.
create or replace function tensorage.sweep(max_blocks int) returns int
language plpgsql set search_path = '' as $$
declare
  room int := max_blocks;
  victim bigint;
  deleted int;
begin
  for victim in
    select d.id from public.datasets d
     where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now() and d.engine = 'database'
     order by d.expires_at for update skip locked
  loop
    exit when room <= 0;
    delete from public.tensors t where t.data_id = victim and t.index in (
      select v.index from public.tensors v where v.data_id = victim order by v.index limit room);
    get diagnostics deleted = row_count;
    room := room - greatest(deleted, 1);
    if not exists (select from public.tensors t where t.data_id = victim) then
      perform tensorage.delete_swept(victim);
    end if;
  end loop;
  -- A piece at a time, here too: whoever appended a million times yesterday need not wait for it today.
  perform tensorage.forget(256);
  return (select count(*) from public.datasets d
           where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now() and d.engine = 'database');
end
$$;

-- Gives up the staged appends and assignments of an array that is to be swept, but for those that are being committed.
create or replace function tensorage.give_up(victim bigint) returns void
language sql set search_path = '' as $$
  update public.datasets s set append_to = null, assign_to = null, expires_at = '-infinity'
   where s.id = any (array(select w.id from public.datasets w
                            where w.append_to = victim or w.assign_to = victim for update skip locked))
$$;

-- Deletes a dataset that nothing is left of. Cascading to the staged appends and assignments of an array would delete
-- all that these hold at once: they are given up, and swept on their own.
create or replace function tensorage.delete_swept(victim bigint) returns void
language sql set search_path = '' as $$
  select tensorage.give_up(victim);
  delete from public.datasets d where d.id = victim and not exists (
    select from public.datasets w where w.append_to = victim or w.assign_to = victim)
$$;

-- Whether the caller has datasets whose objects are to be deleted: 1 or 0.
create or replace function tensorage.objects_left() returns int
language sql stable set search_path = '' as $$
  select count(*)::int from (
    select from public.datasets d
     where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now() and d.engine = 'storage' limit 1) x
$$;

-- What a writer is told: the dataset, how many datasets (such as the one it replaced) are left to sweep, and whether
-- there are objects to delete.
create or replace function tensorage.describe_and_sweep(d public.datasets) returns json
language sql set search_path = '' as $$
  select (tensorage.describe(d)::jsonb
          || jsonb_build_object('left', tensorage.sweep(64), 'objects_left', tensorage.objects_left()))::json
$$;

drop function if exists tensorage.check_append(public.datasets, text, bigint[], text);
create or replace function tensorage.check_append(
  target public.datasets, key text, shape bigint[], dtype text, engine text default 'database') returns void
language plpgsql stable set search_path = '' as $$
begin
  if target.id is null and exists (select from public.datasets s
                                    where s.key = check_append.key and s.is_shared and s.state = 'committed') then
    raise exception using errcode = 'TS007', message = format('the array %L belongs to somebody else', key);
  elsif target.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array %L to append to', key);
  elsif target.engine <> engine then
    raise exception using errcode = 'TS010', message = format('the array %L is kept by engine %L', key, target.engine),
      detail = tensorage.describe(target)::text;
  elsif cardinality(target.shape) = 0 or target.shape[2:] is distinct from shape[2:]
        or cardinality(target.shape) <> cardinality(shape) or coalesce(shape[1], -1) < 0 then
    raise exception using errcode = 'TS006',
      message = format('rows of shape %s do not fit the array %L of shape %s', tensorage.shape_text(shape), key,
                       tensorage.shape_text(target.shape)),
      hint = 'All but the first axis have to be the same.';
  elsif target.shape[1]::numeric + shape[1] > 9223372036854775807 then
    raise exception using errcode = 'TS006', message = format('the array %L has no room for %s more rows', key, shape[1]);
  elsif target.dtype is distinct from dtype then
    raise exception using errcode = 'TS009',
      message = format('rows of dtype %s do not fit the array %L of dtype %s', dtype, key, target.dtype),
      detail = tensorage.describe(target)::text;
  end if;
end
$$;

-- Makes a staged dataset with what `asked` says: key, shape, dtype, chunk, engine, zarr, is_shared, attrs, dims,
-- operation, append (rows for an array of the database that is there), overwrite (an array that is there may be replaced).
create or replace function tensorage.stage(asked json) returns public.datasets
language plpgsql set search_path = '' as $$
declare
  d public.datasets;
  target public.datasets;
  asked_shape bigint[] := array(select json_array_elements_text(asked -> 'shape')::bigint);
begin
  perform tensorage.lock_quota();
  perform tensorage.sweep(64);
  select * into target from public.datasets t
   where t.user_id = tensorage.me() and t.key = asked ->> 'key' and t.state = 'committed';
  if coalesce((asked ->> 'append')::boolean, false) then
    perform tensorage.check_append(target, asked ->> 'key', asked_shape, asked ->> 'dtype');
    if asked ->> 'engine' <> 'database' then
      raise exception using errcode = 'TS010',
        message = format('the array %L is kept by engine %L', target.key, target.engine),
        detail = tensorage.describe(target)::text;
    end if;
    -- Until the row below refers to it: it may just be being replaced, and swept.
    perform from public.datasets t where t.id = target.id and t.state = 'committed' for key share;
    if not found then
      raise exception using errcode = 'TS003', message = 'the array to append to was replaced or deleted';
    end if;
  elsif target.id is not null and (asked ->> 'overwrite') is distinct from 'true' then
    raise exception using errcode = 'TS002', message = format('the key %L is taken', asked ->> 'key');
  end if;
  insert into public.datasets (
      user_id, key, shape, dtype, chunk, engine, zarr, is_shared, attrs, dims, overwrite, operation, append_to, expires_at)
    values (
      tensorage.me(), asked ->> 'key', asked_shape, asked ->> 'dtype', (asked ->> 'chunk')::int,
      coalesce(asked ->> 'engine', 'database'), tensorage.zarr_of(asked ->> 'zarr'),
      coalesce((asked ->> 'is_shared')::boolean, false), coalesce((asked ->> 'attrs')::jsonb, '{}'),
      case json_typeof(asked -> 'dims') when 'array' then array(select json_array_elements_text(asked -> 'dims')) end,
      coalesce((asked ->> 'overwrite')::boolean, false), (asked ->> 'operation')::uuid,
      case when (asked ->> 'append')::boolean then target.id end,
      now() + interval '1 day')
    returning * into d;
  if d.engine = 'storage' then
    -- Now, not at the commit, when all of the objects have been uploaded.
    perform tensorage.elements(tensorage.shard_grid(d.zarr, d.shape));
  end if;
  perform tensorage.check_quota(d.nbytes, d.id);
  return d;
end
$$;

-- Metadata of Zarr that a request names, if the shape of a shard can be taken from them.
create or replace function tensorage.zarr_of(metadata text) returns json
language plpgsql immutable set search_path = '' as $$
begin
  if metadata is not null and exists (
       select from json_array_elements_text(metadata::json -> 'chunk_grid' -> 'configuration' -> 'chunk_shape') extent
        where (extent::bigint >= 1) is not true) then
    raise exception using errcode = 'TS006', message = 'the metadata of Zarr name a shard without elements';
  end if;
  return metadata::json;
exception when data_exception or program_limit_exceeded then
  raise exception using errcode = 'TS006', message = format('these are no metadata of Zarr: %s', sqlerrm);
end
$$;

-- Inner functions: shards -----------------------------------------------------------------------------

-- Shards along each axis, of an array of this shape.
create or replace function tensorage.shard_grid(zarr json, shape bigint[]) returns bigint[]
language plpgsql immutable set search_path = '' as $$
declare
  extents bigint[] := array(
    select json_array_elements_text(zarr -> 'chunk_grid' -> 'configuration' -> 'chunk_shape')::bigint);
begin
  if cardinality(extents) <> cardinality(shape) then
    raise exception using errcode = 'TS006',
      message = format('shards of shape %s do not fit an array of shape %s', tensorage.shape_text(extents),
                       tensorage.shape_text(shape));
  end if;
  -- Rounded up, without a sum that overflows.
  return array(select s.extent / e.extent + (s.extent % e.extent > 0)::int
                 from unnest(shape) with ordinality s(extent, axis)
                 join unnest(extents) with ordinality e(extent, axis) using (axis) order by axis);
end
$$;

-- The shards that a staged dataset has to have: all of a new array, or those from the first that an append adds to. Of an
-- assignment, those that it may have.
create or replace function tensorage.staged_shards(d public.datasets) returns int8range
language plpgsql immutable set search_path = '' as $$
declare
  grid bigint[] := tensorage.shard_grid(d.zarr, d.shape);
  row_shards bigint := tensorage.elements(grid[2:]);
  extent bigint := (d.zarr -> 'chunk_grid' -> 'configuration' -> 'chunk_shape' ->> 0)::bigint;
  rows bigint;
begin
  if d.append_to is null then
    return int8range(0, tensorage.elements(grid));
  elsif d.shape[1] = 0 then
    return 'empty';
  end if;
  rows := d.base_rows + d.shape[1];
  return int8range(d.base_rows / extent * row_shards, (rows / extent + (rows % extent > 0)::int) * row_shards);
end
$$;

-- How many chunks a shard has at the most, which are no more than its elements.
create or replace function tensorage.chunks_of_shard(zarr json) returns bigint
language plpgsql immutable set search_path = '' as $$
declare
  product bigint := 1;
  extent text;
begin
  for extent in select json_array_elements_text(zarr -> 'chunk_grid' -> 'configuration' -> 'chunk_shape') loop
    product := product * least(extent::bigint, 65536);
    exit when product >= 65536;
  end loop;
  return least(product, 65536);
end
$$;

-- The rows of axis 0 that a shard of d holds, as far as the array extends. All of it without axes.
create or replace function tensorage.rows_of_shard(d public.datasets, number bigint) returns int8range
language plpgsql immutable set search_path = '' as $$
declare
  grid bigint[] := tensorage.shard_grid(d.zarr, d.shape);
  extent bigint := (d.zarr -> 'chunk_grid' -> 'configuration' -> 'chunk_shape' ->> 0)::bigint;
  low bigint;
begin
  if cardinality(grid) = 0 then
    return int8range(0, 1);
  end if;
  low := number / greatest(tensorage.elements(grid[2:]), 1) * extent;
  return int8range(low, least(low + extent, d.shape[1]));
end
$$;

-- Puts shards into a staged dataset. Each of them says its number, name, nbytes and index (base64); of a part of a
-- shard, the rows of the array that are in it now, and the name that it had before; and of what it takes the place of,
-- based_on. Sent twice, they are there once.
create or replace function tensorage.put_shards(d public.datasets, shards json) returns void
language plpgsql set search_path = '' as $$
declare
  s record;
  old public.shards;
  is_known boolean;
  whole int8range;
  there int8multirange;
  numbers int8range := tensorage.staged_shards(d);
  max_chunks bigint := tensorage.chunks_of_shard(d.zarr);
begin
  for s in
    select * from json_to_recordset(shards)
      as s(number bigint, name text, nbytes bigint, index text, low bigint, high bigint, before text, based_on text)
  loop
    if s.name is not null and tensorage.folder_of_array(s.name) is distinct from d.id::text then
      raise exception using errcode = 'TS006', message = format('%L is no name of an object of dataset %s', s.name, d.id);
    elsif not s.number <@ numbers or length(s.index) / 4 * 3 > 16 * max_chunks + 2 then
      -- The quota counts elements: they are the bound of what is kept here for them, too.
      raise exception using errcode = 'TS006',
        message = format('%L has shards %s of up to %s chunks, and not one of number %s with an index of %s bytes', d.key,
                         numbers, max_chunks, s.number, length(s.index) / 4 * 3);
    elsif s.low is null and s.high is null then
      insert into public.shards as t (data_id, user_id, number, name, nbytes, index, based_on)
        values (d.id, d.user_id, s.number, s.name, s.nbytes, decode(s.index, 'base64'), s.based_on)
        on conflict (data_id, number) do update
          set name = excluded.name, nbytes = excluded.nbytes, index = excluded.index, filled = null,
              based_on = excluded.based_on;
      continue;
    end if;
    whole := tensorage.rows_of_shard(d, s.number);
    -- Of a shard that takes the place of another, no part: it would not say of which.
    if (s.low < s.high and int8range(s.low, s.high) <@ whole and d.append_to is null and d.assign_to is null) is not true then
      raise exception using errcode = 'TS006',
        message = format('rows %s to %s are no part of shard %s', s.low, s.high, s.number);
    end if;
    select * into old from public.shards t where t.data_id = d.id and t.number = s.number for update;
    is_known := found;
    continue when is_known and old.name = s.name;  -- sent again
    if (case when is_known then coalesce(old.name, '') end) is distinct from s.before then
      raise exception using errcode = 'TS003', message = format('shard %s of %L was filled meanwhile', s.number, d.key);
    end if;
    there := case when is_known then coalesce(old.filled, whole::int8multirange) else '{}' end
             + int8range(s.low, s.high)::int8multirange;
    insert into public.shards as t (data_id, user_id, number, name, nbytes, index, filled)
      values (d.id, d.user_id, s.number, s.name, s.nbytes, decode(s.index, 'base64'), nullif(there, whole::int8multirange))
      on conflict (data_id, number) do update
        set name = excluded.name, nbytes = excluded.nbytes, index = excluded.index, filled = excluded.filled
        where coalesce(t.name, '') = s.before;
    if not found then
      raise exception using errcode = 'TS003', message = format('shard %s of %L was filled meanwhile', s.number, d.key);
    end if;
  end loop;
exception when not_null_violation or check_violation or data_exception then
  raise exception using errcode = 'TS006', message = format('these are no shards: %s', sqlerrm);
when unique_violation then
  raise exception using errcode = 'TS006', message = 'an object can be no two shards';
end
$$;

-- Raises unless all shards of a staged dataset are there. None but these can be.
create or replace function tensorage.check_shards(d public.datasets) returns void
language plpgsql stable set search_path = '' as $$
declare
  numbers int8range := tensorage.staged_shards(d);
  expected bigint := coalesce(upper(numbers) - lower(numbers), 0);
  whole bigint;
begin
  select count(*) filter (where s.filled is null) into whole from public.shards s where s.data_id = d.id;
  if whole <> expected then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s objects of %L are there', whole, expected, d.key),
      detail = json_build_object('stored', whole, 'expected', expected)::text,
      hint = 'Send the missing ones, or abort.';
  end if;
end
$$;

-- Puts the shards of a staged append or assignment in place of those they were made from. The old ones go to a dataset
-- of their own, to be swept.
create or replace function tensorage.publish_shards(d public.datasets) returns public.datasets
language plpgsql set search_path = '' as $$
declare
  target public.datasets;
  replaced bigint;
begin
  select * into target from public.datasets t
   where t.id = coalesce(d.append_to, d.assign_to) and t.state = 'committed' for update;
  if target.id is null or target.shape[1] <> d.base_rows or exists (
       select from public.shards s left join public.shards t on t.data_id = target.id and t.number = s.number
        where s.data_id = d.id
          and (case when t.number is not null then coalesce(t.name, '') end) is distinct from s.based_on) then
    raise exception using errcode = 'TS003', message = format('the array %L has changed while it was written to', d.key);
  end if;
  if d.append_to is not null then
    perform tensorage.check_shards(d);
    target := tensorage.extend(target.id, d.shape[1]);
  elsif exists (select from public.shards s where s.data_id = d.id and (s.based_on is null or s.filled is not null)) then
    -- An array has all of its shards: what takes the place of none lies outside of it.
    raise exception using errcode = 'TS004', message = format('not all objects are whole and of shards of %L', d.key);
  else
    target := tensorage.changed(target.id);
  end if;
  if exists (select from public.shards s where s.data_id = d.id and s.based_on is not null) then
    insert into public.datasets (user_id, owner, key, shape, dtype, chunk, engine, zarr, expires_at)
      values (d.user_id, d.owner, d.key, '{0}', d.dtype, d.chunk, d.engine, d.zarr, '-infinity') returning id into replaced;
    update public.shards t set data_id = replaced
     where t.data_id = target.id and t.number in (select s.number from public.shards s where s.data_id = d.id);
  end if;
  update public.shards t set data_id = target.id, based_on = null where t.data_id = d.id;
  delete from public.datasets s where s.id = d.id;
  return target;
end
$$;

-- Functions of the database engine, which keep away from arrays of Storage --------------------------------

-- Cuts the elements of a request into blocks of d. Sent twice, the same blocks stay as they are.
create or replace function tensorage.insert_blocks(
  d public.datasets, at_index bigint, elements bigint, chunk bigint, request bytea, elements_at int) returns void
language plpgsql set search_path = '' as $$
begin
  if d.engine <> 'database' then
    raise exception using errcode = 'TS006', message = format('%L is kept by engine %L, and not as rows', d.key, d.engine);
  elsif octet_length(request) - elements_at <> elements * d.itemsize then
    raise exception using errcode = 'TS006',
      message = format('%s elements of %s are %s bytes, the request holds %s', elements, d.dtype,
                       elements * d.itemsize, octet_length(request) - elements_at);
  elsif chunk > d.chunk then
    raise exception using errcode = 'TS006',
      message = format('blocks of %s elements are too large for this array: its chunk is %s', chunk, d.chunk);
  end if;
  insert into public.tensors as t (data_id, user_id, index, count, tensor)
    select d.id, d.user_id, at_index + first, least(chunk, elements - first),
           substr(request, (elements_at + first * d.itemsize)::int + 1,
                  (least(chunk, elements - first) * d.itemsize)::int)
      from generate_series(0, elements - 1, chunk) as first
    on conflict (data_id, index) do update set count = excluded.count, tensor = excluded.tensor
      where t.count <> excluded.count or t.tensor <> excluded.tensor;
end
$$;

-- The array that a reader opened, if the caller may read it and its elements are still what they were. The one check of
-- every reading function: all that it reads afterwards is found by the id that is returned here. Whoever may not read it
-- is told the same as of an array that is not there.
drop function if exists tensorage.readable(bigint, bigint);
create or replace function tensorage.readable(data_id bigint, version bigint, engine text default 'database')
returns public.datasets
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
begin
  -- By the number alone: no other index answers that, whatever PostgreSQL thinks of the size of the table.
  select * into d from public.datasets s where s.id = readable.data_id;
  if d.id is null or d.state <> 'committed' or (d.user_id = me or d.is_shared) is not true
     or (readable.version between d.stable_since and d.version) is not true then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return tensorage.of_engine(d, engine);
end
$$;

-- The same dataset, unless it is kept by another engine.
create or replace function tensorage.of_engine(d public.datasets, engine text) returns public.datasets
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if d.engine is distinct from engine then
    raise exception using errcode = 'TS010',
      message = format('the array %L is kept by engine %L', d.key, d.engine), detail = tensorage.describe(d)::text;
  end if;
  return d;
end
$$;

-- The caller's array as a writer opened it, locked.
drop function if exists tensorage.assignable(bigint, bigint);
create or replace function tensorage.assignable(data_id bigint, version bigint, engine text default 'database')
returns public.datasets
language plpgsql set search_path = '' as $$
declare
  d public.datasets;
begin
  select * into d from public.datasets s where s.id = assignable.data_id and s.user_id = tensorage.me() for update;
  if d.id is null and exists (select from public.datasets s
                               where s.id = assignable.data_id and s.is_shared and s.state = 'committed') then
    raise exception using errcode = 'TS007', message = 'the array belongs to somebody else';
  elsif d.id is null or d.state <> 'committed'
     or (assignable.version between d.stable_since and d.version) is not true then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return tensorage.of_engine(d, engine);
end
$$;

-- A dataset of the caller that is being written, kept from being swept and locked against its commit.
drop function if exists tensorage.staged(bigint);
create or replace function tensorage.staged(data_id bigint, engine text default 'database') returns public.datasets
language plpgsql set search_path = '' as $$
declare
  d public.datasets;
begin
  -- What is staged need not be on disk before its commit, which waits for all that was written before it, too. Should
  -- the server fail in between, blocks are missing, and the commit says so.
  perform set_config('synchronous_commit', 'off', true);
  -- Before the shared lock below, which two writers hold at once: neither could then update the row.
  update public.datasets s set expires_at = now() + interval '1 day'
   where s.id = staged.data_id and s.user_id = tensorage.me() and s.state = 'staged'
     and s.expires_at between now() and now() + interval '12 hours';
  -- Shared among the writers, and against the commit, which must not overtake a block.
  select * into d from public.datasets s where s.id = staged.data_id and s.user_id = tensorage.me() for share;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
  elsif d.state <> 'staged' or d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L is no longer being written', d.key);
  end if;
  return tensorage.of_engine(d, engine);
end
$$;

-- Functions of the REST API -----------------------------------------------------------------------------

create or replace function public.tensorage_version() returns int
language sql stable set search_path = '' as $$ select 3 $$;

-- Declares an array that comes in several requests: a staged dataset, to be filled by tensorage_put, or by objects and
-- tensorage_put_shards.
drop function if exists public.tensorage_begin(text, bigint[], text, int, text, boolean, jsonb, text[], boolean, boolean, uuid);
create or replace function public.tensorage_begin(
  key text, shape bigint[], dtype text, chunk int, engine text default 'database', is_shared boolean default false,
  attrs jsonb default '{}', dims text[] default null, overwrite boolean default false, append boolean default false,
  operation uuid default null, zarr text default null) returns json
language plpgsql security definer set search_path = '' as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s where s.operation = tensorage_begin.operation and s.user_id = tensorage.me();
  if d.id is null then
    d := tensorage.stage(json_build_object(
      'key', key, 'shape', shape, 'dtype', dtype, 'chunk', chunk, 'engine', engine, 'is_shared', is_shared,
      'attrs', attrs, 'dims', dims, 'overwrite', overwrite, 'append', append, 'operation', operation, 'zarr', zarr));
  end if;
  return tensorage.describe(d);
end
$$;

-- Begins an assignment of several requests: a staged dataset, for tensorage_patch, or for objects and
-- tensorage_put_shards. Counts in the quota as the array.
drop function if exists public.tensorage_begin_assign(bigint, bigint, uuid);
create or replace function public.tensorage_begin_assign(
  data_id bigint, version bigint, operation uuid default null, engine text default 'database') returns json
language plpgsql security definer set search_path = '' as $$
declare
  before json := tensorage.answered(operation);
  target public.datasets;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.operation = tensorage_begin_assign.operation and s.user_id = tensorage.me();
  if d.id is null then
    perform tensorage.lock_quota();
    perform tensorage.sweep(64);
    -- Not locked: the quota's lock comes first, and the commit looks again.
    select * into target from public.datasets s where s.id = tensorage_begin_assign.data_id and s.user_id = auth.uid();
    perform tensorage.check_quota(coalesce(target.nbytes, 0));
    target := tensorage.assignable(data_id, version, engine);
    insert into public.datasets (
        user_id, owner, key, shape, dtype, chunk, engine, zarr, operation, assign_to, assign_version, expires_at)
      values (
        target.user_id, target.owner, target.key, target.shape, target.dtype, target.chunk, target.engine, target.zarr,
        tensorage_begin_assign.operation, target.id, target.version, now() + interval '1 day')
      returning * into d;
  end if;
  return tensorage.describe(d);
end
$$;

-- Begins an append to an array of Storage, of rows of this shape behind its `base_rows`: a staged dataset, for objects
-- and tensorage_put_shards.
create or replace function public.tensorage_begin_append(
  data_id bigint, shape bigint[], base_rows bigint, operation uuid default null) returns json
language plpgsql security definer set search_path = '' as $$
declare
  before json := tensorage.answered(operation);
  target public.datasets;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.operation = tensorage_begin_append.operation and s.user_id = tensorage.me();
  if d.id is null then
    perform tensorage.lock_quota();
    perform tensorage.sweep(64);
    select * into target from public.datasets s where s.id = tensorage_begin_append.data_id for key share;
    if target.user_id <> tensorage.me() and target.is_shared and target.state = 'committed' then
      raise exception using errcode = 'TS007', message = format('the array %L belongs to somebody else', target.key);
    elsif target.user_id is distinct from tensorage.me() or target.state <> 'committed'
          or target.shape[1] is distinct from base_rows then
      raise exception using errcode = 'TS003', message = 'the array to append to has changed since it was opened';
    end if;
    perform tensorage.check_append(target, target.key, shape, target.dtype, 'storage');
    insert into public.datasets (
        user_id, owner, key, shape, dtype, chunk, engine, zarr, operation, append_to, base_rows, expires_at)
      values (
        target.user_id, target.owner, target.key, tensorage_begin_append.shape, target.dtype, target.chunk, target.engine,
        target.zarr, tensorage_begin_append.operation, target.id, target.shape[1], now() + interval '1 day')
      returning * into d;
    perform tensorage.check_quota(d.nbytes, d.id);
  end if;
  return tensorage.describe(d);
end
$$;

-- Shards of a staged dataset, whose objects are there. See tensorage.put_shards.
create or replace function public.tensorage_put_shards(data_id bigint, shards json) returns json
language plpgsql security definer set search_path = '' as $$
declare
  d public.datasets := tensorage.staged(data_id, 'storage');
begin
  perform tensorage.put_shards(d, shards);
  return json_build_object('id', d.id);
end
$$;

-- Makes a complete staged dataset visible in one step (or, begun as an append, the end of its array; or as an
-- assignment, a part of it). The last of its shards may come along.
drop function if exists public.tensorage_commit(bigint, uuid);
create or replace function public.tensorage_commit(
  data_id bigint, operation uuid default null, shards json default null) returns json
language plpgsql security definer set search_path = '' as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
  target public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.id = tensorage_commit.data_id and s.user_id = tensorage.me() for update;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
  elsif d.state = 'committed' then
    return tensorage.describe(d);
  elsif d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L was aborted', d.key);
  elsif shards is not null then
    perform tensorage.put_shards(tensorage.of_engine(d, 'storage'), shards);
  end if;
  if d.engine = 'storage' then
    if d.append_to is not null or d.assign_to is not null then
      return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish_shards(d)));
    end if;
    perform tensorage.check_shards(d);
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish(d)));
  elsif d.assign_to is not null then
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish_assignment(d)));
  end if;
  perform tensorage.check_complete(d);
  if d.append_to is null then
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish(d)));
  end if;
  target := tensorage.extend(d.append_to, d.shape[1]);
  update public.tensors t
     set data_id = target.id, index = t.index + tensorage.elements(target.shape) - tensorage.elements(d.shape)
   where t.data_id = d.id;
  update public.datasets t set chunk = greatest(t.chunk, d.chunk) where t.id = target.id returning * into target;
  delete from public.datasets s where s.id = d.id;
  perform tensorage.merge_tail(target);
  return tensorage.answer(operation, tensorage.describe(target));
end
$$;

-- Which objects hold the elements of shards, in order of their numbers, each once. Big-endian, for each of them:
--   0  8  number              16  4  bytes of the name       24  the object's name, none if the shard has no object
--   8  8  bytes of the object 20  4  bytes of the index          and then the index: see public.shards
-- Of an array of Storage as it was opened; or with no version, of one of the caller that is being written, as far as
-- there are any.
create or replace function public.tensorage_shards(data_id bigint, version bigint, numbers bigint[])
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
  wanted bigint;
  there bigint;
  answer_bytes bigint;
begin
  if version is not null then
    d := tensorage.readable(data_id, version, 'storage');
  else
    select * into d from public.datasets s where s.id = tensorage_shards.data_id;
    if (d.user_id = me and d.state = 'staged' and d.expires_at > now()) is not true then
      raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
    end if;
    d := tensorage.of_engine(d, 'storage');
  end if;
  perform tensorage.check_pieces(cardinality(numbers));
  -- "offset 0" has each shard looked up by its number. For "number = any (numbers)", PostgreSQL may read all shards of
  -- the array.
  select count(w.number), count(s.number), sum(24 + coalesce(octet_length(s.name), 0) + octet_length(s.index))
    into wanted, there, answer_bytes
    from (select distinct number from unnest(numbers) number) w left join lateral (
      select t.number, t.name, t.index from public.shards t where t.data_id = d.id and t.number = w.number offset 0) s
      on true;
  if answer_bytes > 16777216 then
    raise exception using errcode = 'TS006',
      message = format('%s shards are too many for one request', wanted), hint = 'Ask for less at a time.';
  elsif version is not null and there <> wanted then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s objects asked for are known', there, wanted),
      hint = 'The selection lies outside of the array, or its shards were deleted behind its back.';
  end if;
  return coalesce((
    select string_agg(int8send(s.number) || int8send(s.nbytes) || int4send(coalesce(octet_length(s.name), 0))
                      || int4send(octet_length(s.index)) || convert_to(coalesce(s.name, ''), 'UTF8') || s.index,
                      '' order by s.number)
      from (select distinct number from unnest(numbers) number) w, lateral (
        select t.* from public.shards t where t.data_id = d.id and t.number = w.number offset 0) s), '');
end
$$;

-- Whether the bucket has the object of a shard that the caller may read: that Storage says otherwise is then for want of
-- a policy.
create or replace function public.tensorage_has_object(data_id bigint, number bigint) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
  object_name text;
begin
  -- One look after the other, each by one index: a join may begin at either end.
  select * into d from public.datasets s where s.id = tensorage_has_object.data_id;
  if (d.user_id = me or (d.is_shared and d.state = 'committed')) is not true then
    return false;
  end if;
  select s.name into object_name from public.shards s where s.data_id = d.id and s.number = tensorage_has_object.number;
  -- With the collation of Storage's index: a look by "C" would read all objects of the project.
  return exists (
    select from storage.objects o where o.bucket_id = 'tensors' and o.name = object_name collate "default");
end
$$;

-- Names of objects that the caller's removed, replaced or given up arrays have left, at most so many, to be deleted by
-- requests to Storage. Asked again, it forgets those that are gone, and names others: none if there are no more, or
-- none among the next 100,000 shards.
create or replace function public.tensorage_sweep_objects(max_objects int default 1000) returns json
language plpgsql security definer set search_path = '' as $$
declare
  room int := least(max_objects, 1000);
  -- A statement has but some seconds: of more shards, another request forgets the rest.
  seen int := 0;
  names text[] := '{}';
  page record;
  after bigint;
  folder text;
  untold text[];
  d public.datasets;
begin
  -- What is staged for an array that is to be swept goes with it: it is named now, or nobody would ask for it.
  perform tensorage.give_up(s.id) from public.datasets s
   where s.user_id = tensorage.me() and s.state = 'staged' and s.expires_at <= now() and s.engine = 'storage';
  for d in
    select * from public.datasets s
     where s.user_id = tensorage.me() and s.state = 'staged' and s.expires_at <= now() and s.engine = 'storage'
     order by s.expires_at, s.id for update skip locked
  loop
    after := -1;
    loop
      exit when room <= 0 or seen >= 100000;
      select count(*) as shards, max(s.number) as last, array_agg(s.number) filter (where not s.has_object) as gone,
             coalesce(array_agg(s.name order by s.number) filter (where s.has_object), '{}') as there
        into page
        from (select t.number, t.name, exists (
                       -- By Storage's index, which has another collation. "offset 0": each is looked up.
                       select from storage.objects o
                        where o.bucket_id = 'tensors' and o.name = t.name collate "default" offset 0) as has_object
                from public.shards t where t.data_id = d.id and t.number > after order by t.number limit 1000) s;
      exit when page.shards = 0;
      delete from public.shards s where s.data_id = d.id and s.number = any (page.gone);
      names := names || page.there[:room];
      room := room - cardinality(page.there);
      seen := seen + page.shards;
      after := page.last;
    end loop;
    exit when room <= 0 or seen >= 100000;
    seen := seen + 1;
    -- What a writer uploaded and never said so.
    folder := d.user_id || '/' || d.id;
    untold := array(
      select o.name from storage.objects o
       -- By Storage's own index of prefixes; '0' comes right after '/'.
       where o.bucket_id = 'tensors' and o.name ~>=~ (folder || '/') and o.name ~<~ (folder || '0')
         and not exists (select from public.shards s where s.name = o.name)
       limit room);
    names := names || untold;
    room := room - cardinality(untold);
    if cardinality(untold) = 0 and not exists (select from public.shards s where s.data_id = d.id) then
      perform tensorage.delete_swept(d.id);
    end if;
  end loop;
  return to_json(names);
end
$$;

-- Deletes an array of the caller. {"left": datasets still to be swept, "objects_left": whether objects are}
create or replace function public.tensorage_remove(key text, operation uuid default null) returns json
language plpgsql security definer set search_path = '' as $$
declare
  before json := tensorage.answered(operation);
  removed bigint;
begin
  if before is not null then
    return before;
  end if;
  update public.datasets d set state = 'staged', expires_at = '-infinity', operation = null
   where d.user_id = tensorage.me() and d.key = tensorage_remove.key and d.state = 'committed' returning d.id into removed;
  if removed is null then
    if exists (select from public.datasets d
                where d.key = tensorage_remove.key and d.is_shared and d.state = 'committed') then
      raise exception using errcode = 'TS007', message = format('the array %L belongs to somebody else', key);
    end if;
    raise exception using errcode = 'TS001', message = format('there is no array %L', key);
  end if;
  return tensorage.answer(operation, json_build_object(
    'id', removed, 'left', tensorage.sweep(256), 'objects_left', tensorage.objects_left()));
end
$$;

-- Execution rights: PostgreSQL gives every new function to everybody. --------------------------------------

do $$
declare
  f regprocedure;
begin
  for f in select p.oid from pg_proc p
            where p.pronamespace = 'tensorage'::regnamespace
               or (p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage_')) loop
    execute format('revoke all on function %s from public, anon, authenticated', f);
  end loop;
  -- Beside the functions of the API: those which the policies call, and what datasets.nbytes is computed with, for
  -- service_role, which may write the table.
  for f in select p.oid from pg_proc p
            where (p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage_'))
               or (p.pronamespace = 'tensorage'::regnamespace
                   and p.proname in ('elements', 'folder_of_array', 'may_write_object', 'may_delete_object',
                                     'is_shared_object')) loop
    execute format('grant execute on function %s to authenticated, service_role', f);
  end loop;
end
$$;

notify pgrst, 'reload schema';
