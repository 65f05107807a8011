-- tensorage: shards of arrays of the engine "storage".

-- The grid of shards -------------------------------------------------------------------------------

-- Number of shards along each axis of an array of this shape.
create or replace function tensorage.shard_grid(zarr json, shape bigint[]) returns bigint[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  extents bigint[] := array(
    select json_array_elements_text(zarr -> 'chunk_grid' -> 'configuration' -> 'chunk_shape')::bigint);
  grid bigint[] := '{}';
begin
  if cardinality(extents) <> cardinality(shape) then
    raise exception using errcode = 'TS006',
      message = format('shards of shape %s do not fit an array of shape %s', tensorage.shape_text(extents),
                       tensorage.shape_text(shape));
  end if;
  for axis in 1 .. cardinality(shape) loop
    -- Rounds up without a sum that could overflow.
    grid := grid || (shape[axis] / extents[axis] + (shape[axis] % extents[axis] > 0)::int);
  end loop;
  return grid;
end
$$;

-- Rows of axis 0 that a shard has. Null for an array without axes.
create or replace function tensorage.rows_per_shard(zarr json) returns bigint
language sql immutable as $$ select (zarr -> 'chunk_grid' -> 'configuration' -> 'chunk_shape' ->> 0)::bigint $$;

-- Number of the first shard of which nothing is among the first `rows` of an array.
create or replace function tensorage.shard_behind(d public.datasets, rows bigint) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  extent bigint := tensorage.rows_per_shard(d.zarr);
begin
  return (rows / extent + (rows % extent > 0)::int) * tensorage.elements((tensorage.shard_grid(d.zarr, d.shape))[2:]);
end
$$;

-- Numbers of the shards that a staged dataset must have: all of a new array, or those from the first that an append adds to.
-- For an assignment, numbers of the shards that it may have.
create or replace function tensorage.staged_shards(d public.datasets) returns int8range
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  grid bigint[] := tensorage.shard_grid(d.zarr, d.shape);
  row_shards bigint := tensorage.elements(grid[2:]);
begin
  if d.append_to is null then
    return int8range(0, tensorage.elements(grid));
  elsif d.shape[1] = 0 then
    return 'empty';
  end if;
  return int8range(d.base_rows / tensorage.rows_per_shard(d.zarr) * row_shards,
                   tensorage.shard_behind(d, d.base_rows + d.shape[1]));
end
$$;

-- The most chunks that a shard can have: no more than its elements, and no more than 65536.
create or replace function tensorage.chunks_of_shard(zarr json) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
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

-- The rows of axis 0 that a shard of d holds, as far as the array extends. All of an array without axes.
create or replace function tensorage.rows_of_shard(d public.datasets, number bigint) returns int8range
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  grid bigint[] := tensorage.shard_grid(d.zarr, d.shape);
  extent bigint := tensorage.rows_per_shard(d.zarr);
  low bigint;
begin
  if cardinality(grid) = 0 then
    return int8range(0, 1);
  end if;
  low := number / greatest(tensorage.elements(grid[2:]), 1) * extent;
  return int8range(low, least(low + extent, d.shape[1]));
end
$$;

-- True if this is the name of an object in the folder of a dataset.
create or replace function tensorage.is_object_of(d public.datasets, object_name text) returns boolean
language sql stable as $$
  select starts_with(object_name, d.user_id || '/' || d.id || '/') and tensorage.is_plain_name(object_name)
$$;

-- Bytes of the elements of a shard, as they are stored: of its object, its tail and its loose rows.
create or replace function tensorage.stored_bytes(nbytes bigint, tail bytea, loose bytea) returns bigint
language sql immutable as $$ select nbytes + coalesce(octet_length(tail), 0) + coalesce(octet_length(loose), 0) $$;

-- The fingerprint of a shard, by which a writer says which one a new shard is made from: the name of its object, which never changes,
-- and a digest of its tail and its loose rows, if it has any, with the index that tells the chunks.
create or replace function tensorage.shard_fingerprint(name text, index bytea, tail bytea, loose bytea, loose_at int) returns text
language sql immutable as $$
  select coalesce(name, '') || case when coalesce(tail, loose) is null then ''
    else '+' || md5(index || coalesce(tail, '') || coalesce(int4send(loose_at) || loose, '')) end
$$;

-- Writing ------------------------------------------------------------------------------------------

-- Puts shards into a staged dataset. Each of them says its number, name, nbytes, index and perhaps a tail, and loose rows with the
-- row that they begin at (bytes in base64). A part of a shard says the rows of the array that are in it now, and the name that the shard had before. A shard that replaces
-- another says in based_on which, by its fingerprint; and in kept, that it is that one with other chunks behind its object and so many
-- bytes of its tail. Sent twice, they are there once.
create or replace function tensorage.put_shards(d public.datasets, shards json) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
      as s(number bigint, name text, nbytes bigint, index text, tail text, loose text, loose_at int, kept int, low bigint,
           high bigint, before text, based_on text)
  loop
    if s.name is not null and not tensorage.is_object_of(d, s.name) then
      raise exception using errcode = 'TS006',
        message = format('%L is no name of an object of dataset %s', left(s.name, 200), d.id);
    elsif s.based_on is not null and d.append_to is null and d.assign_to is null then
      raise exception using errcode = 'TS006', message = format('shard %s of a new array takes the place of none', s.number);
    elsif s.kept is not null and (d.append_to is null or s.name is not null) then
      raise exception using errcode = 'TS006',
        message = format('shard %s keeps the object of another: that is for appends, and it has no object of its own', s.number);
    elsif not s.number <@ numbers or length(s.index) / 4 * 3 > 16 * max_chunks + 2 then
      -- Elements are bounded by the quota, and so bound the rows and indexes that are kept for them here.
      raise exception using errcode = 'TS006',
        message = format('%L has shards %s of up to %s chunks, and not one of number %s with an index of %s bytes', d.key,
                         numbers, max_chunks, s.number, length(s.index) / 4 * 3);
    elsif s.low is null and s.high is null then
      insert into public.shards as t (data_id, user_id, number, name, nbytes, index, tail, loose, loose_at, kept, based_on)
        values (d.id, d.user_id, s.number, s.name, s.nbytes, decode(s.index, 'base64'), nullif(decode(s.tail, 'base64'), ''),
                decode(s.loose, 'base64'), s.loose_at, s.kept, s.based_on)
        on conflict (data_id, number) do update
          set name = excluded.name, nbytes = excluded.nbytes, index = excluded.index, tail = excluded.tail, loose = excluded.loose,
              loose_at = excluded.loose_at, kept = excluded.kept, filled = null, based_on = excluded.based_on;
      continue;
    end if;
    whole := tensorage.rows_of_shard(d, s.number);
    -- A shard that replaces another one comes whole: a part does not say which one it replaces.
    if (s.low < s.high and int8range(s.low, s.high) <@ whole and d.append_to is null and d.assign_to is null
        and s.tail is null and s.loose is null) is not true then
      raise exception using errcode = 'TS006',
        message = format('rows %s to %s are no part of shard %s', s.low, s.high, s.number);
    end if;
    select * into old from public.shards t where t.data_id = d.id and t.number = s.number for update;
    is_known := found;
    continue when is_known and old.name = s.name;  -- Sent again.
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

-- Puts all shards, without objects, into a new dataset: see public.tensorage_store_tails. Their tails are the `count` bytes of a
-- request behind its first `tails_at`. Raises unless these are the shards that the dataset must have.
create or replace function tensorage.insert_tails(d public.datasets, shards json, request bytea, tails_at int, count bigint)
returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  numbers int8range := tensorage.staged_shards(d);
  most_index bigint := 16 * tensorage.chunks_of_shard(d.zarr) + 2;
  index bytea;
  behind int := 0;
  put bigint := 0;
  s record;
begin
  -- One after the other: an array that is so small has few.
  for s in select * from json_to_recordset(shards) as a(number bigint, index text, tail int) loop
    index := decode(s.index, 'base64');
    -- Elements are bounded by the quota, and so bound the rows and indexes that are kept for them here.
    exit when (s.number <@ numbers and octet_length(index) <= most_index and s.tail between 0 and insert_tails.count - behind)
              is not true;
    insert into public.shards (data_id, user_id, number, nbytes, index, tail)
      values (d.id, d.user_id, s.number, 0, index, nullif(substr(request, tails_at + 1 + behind, s.tail), ''));
    behind := behind + s.tail;
    put := put + 1;
  end loop;
  if put <> coalesce(upper(numbers) - lower(numbers), 0) or behind <> insert_tails.count then
    raise exception using errcode = 'TS006',
      message = format('%L has all shards of %s, with indexes of up to %s bytes, and tails of %s bytes in all here', d.key, numbers,
                       most_index, insert_tails.count);
  end if;
exception when not_null_violation or check_violation or unique_violation or data_exception then
  raise exception using errcode = 'TS006', message = format('these are no shards: %s', sqlerrm);
end
$$;

-- Shards of a staged dataset, whose objects have been uploaded. See tensorage.put_shards.
create or replace function public.tensorage_put_shards(data_id bigint, shards json) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets := tensorage.staged(data_id, 'storage');
begin
  perform tensorage.put_shards(d, shards);
  perform tensorage.settle();
  return json_build_object('id', d.id);
end
$$;

-- Raises unless all shards of a staged dataset are there. tensorage.put_shards lets in no others. Returns the bytes of their
-- objects. Without the setting, PostgreSQL would read all shards of all arrays: it expects an array to have many.
create or replace function tensorage.check_shards(d public.datasets) returns numeric
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  numbers int8range := tensorage.staged_shards(d);
  expected bigint := coalesce(upper(numbers) - lower(numbers), 0);
  whole bigint;
  bytes numeric;
begin
  select count(*) filter (where s.filled is null), coalesce(sum(tensorage.stored_bytes(s.nbytes, s.tail, s.loose)), 0) into whole, bytes
    from public.shards s where s.data_id = d.id;
  if whole <> expected then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s objects of %L are there', whole, expected, d.key),
      detail = json_build_object('stored', whole, 'expected', expected)::text,
      hint = 'Send the missing ones, or abort.';
  end if;
  return bytes;
end
$$;

-- The fingerprint of a shard, for comparisons: a shard that an array with a fill value does not have yet is like one without an object.
create or replace function tensorage.fingerprint_before(fingerprint text, fill bytea) returns text
language sql immutable as $$
  select case when fill is null then fingerprint else coalesce(fingerprint, '') end
$$;

-- Puts the tails of a staged append behind those of the shards that they were made from, which keep their objects.
create or replace function tensorage.publish_tails(d public.datasets, target_id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  s record;
begin
  for s in
    select t.number, t.index, t.tail, t.loose, t.loose_at, t.kept from public.shards t where t.data_id = d.id and t.kept is not null
  loop
    update public.shards t
       set index = s.index, tail = nullif(coalesce(substr(t.tail, 1, s.kept), '') || coalesce(s.tail, ''), ''), loose = s.loose,
           loose_at = s.loose_at
     where t.data_id = target_id and t.number = s.number and s.kept <= coalesce(octet_length(t.tail), 0);
    continue when found;
    if s.kept > 0 or exists (select from public.shards t where t.data_id = target_id and t.number = s.number) then
      raise exception using errcode = 'TS006', message = format('shard %s keeps %s bytes, and has less', s.number, s.kept);
    end if;
    -- An array with a fill value does not have all of its shards. This one is new.
    update public.shards t set kept = null where t.data_id = d.id and t.number = s.number;
  end loop;
  delete from public.shards t where t.data_id = d.id and t.kept is not null;
exception when check_violation then
  raise exception using errcode = 'TS006', message = format('a tail is too long: %s', sqlerrm);
end
$$;

-- Puts the shards of a staged append or assignment in place of those they were made from. The old ones go to a dataset of
-- their own, to be swept.
create or replace function tensorage.publish_shards(d public.datasets) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  target public.datasets;
  replaced bigint;
  added_bytes numeric;
  folder text := d.user_id || '/' || d.id;
begin
  select * into target from public.datasets t
   where t.id = coalesce(d.append_to, d.assign_to) and t.state = 'committed' for update;
  if target.id is null or target.shape[1] <> d.base_rows or exists (
       select from public.shards s
        where s.data_id = d.id and tensorage.fingerprint_before(s.based_on, target.fill) is distinct from tensorage.fingerprint_before((
          select tensorage.shard_fingerprint(t.name, t.index, t.tail, t.loose, t.loose_at)
            from public.shards t where t.data_id = target.id and t.number = s.number), target.fill))
     -- The array may have become shorter, and longer again. Content of a shard behind the array's end is no element of it.
     or (d.append_to is null and ((target.fill is not null) <> (d.fill is not null) or target.shape[1] < d.shape[1]))
     -- Rows were appended. A shard that the end cut then may have some of them, which the new one lacks.
     or (d.append_to is null and target.shape[1] > d.shape[1] and exists (
       select from public.shards s
        where s.data_id = d.id and s.number >= d.shape[1] / tensorage.rows_per_shard(d.zarr)
                                              * tensorage.elements((tensorage.shard_grid(d.zarr, d.shape))[2:])))
     or (d.append_to is null and exists (
       select from public.shards s
        where s.data_id = d.id and s.number >= tensorage.elements(tensorage.shard_grid(target.zarr, target.shape)))) then
    raise exception using errcode = 'TS003', message = format('the array %L has changed while it was written to', d.key);
  end if;
  added_bytes := (
    select coalesce(sum(tensorage.stored_bytes(s.nbytes, s.tail, s.loose) - coalesce((
             select tensorage.stored_bytes(t.nbytes, t.tail, t.loose) - coalesce(t.nbytes + s.kept, 0)
               from public.shards t where t.data_id = target.id and t.number = s.number), 0)), 0)
      from public.shards s where s.data_id = d.id);
  if d.append_to is not null then
    perform tensorage.check_shards(d);
    target := tensorage.extend(target.id, d.shape[1], added_bytes);
  elsif exists (select from public.shards s where s.data_id = d.id and (s.based_on is null or s.filled is not null)) then
    -- An array has all of its shards: one that replaces none lies outside of it.
    raise exception using errcode = 'TS004', message = format('not all objects are whole and of shards of %L', d.key);
  else
    target := tensorage.changed(target.id, added_bytes);
  end if;
  if target.fill is not null then
    insert into tensorage.written (data_id, number)
      select target.id, s.number from public.shards s where s.data_id = d.id on conflict do nothing;
  end if;
  perform tensorage.publish_tails(d, target.id);
  if exists (select from public.shards s where s.data_id = d.id and s.based_on is not null) then
    replaced := tensorage.dataset_to_sweep(d);
    update public.shards t set data_id = replaced
     where t.data_id = target.id
       and t.number = any (array(select s.number from public.shards s where s.data_id = d.id));
  end if;
  update public.shards t set data_id = target.id, based_on = null where t.data_id = d.id;
  if exists (
       select from storage.objects o
        -- Storage's own index of prefixes answers this; '0' comes right after '/'.
        where o.bucket_id = 'tensors' and o.name ~>=~ (folder || '/') and o.name ~<~ (folder || '0')
          and not exists (select from public.shards s where s.name = o.name)) then
    -- Objects that the writer, perhaps somebody else, has uploaded without telling of them: to be swept with what is left of d.
    update public.datasets s
       set append_to = null, assign_to = null, operation = null, shape = '{0}', expires_at = '-infinity' where s.id = d.id;
    perform tensorage.end_staging(d.id);
  else
    perform tensorage.delete_dataset(d.id);
  end if;
  return target;
end
$$;

-- Loose rows ---------------------------------------------------------------------------------------
--
-- An append that changes encoded chunks rests on the rows that there were: of many writers at once, one lands, and the others
-- begin anew. Rows that are kept as they come rest on nothing, and go behind whatever is there when their turn comes. A writer that
-- finds no room for them encodes all of them, and leaves those that fill no chunk loose again.

-- The rows of a chunk of an array whose rows may be loose; null if they may not. Each row is then a part of one shard alone, and
-- chunks may come behind those of an object.
create or replace function tensorage.chunk_rows(d public.datasets) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  sharding json := d.zarr -> 'codecs' -> 0;
begin
  if d.engine <> 'storage' or cardinality(d.shape) = 0 or tensorage.is_ragged(d.dtype)
     or (sharding ->> 'name') is distinct from 'sharding_indexed' or d.zarr -> 'codecs' -> 1 is not null
     or coalesce(sharding -> 'configuration' ->> 'index_location', 'end') <> 'end'
     or coalesce(sharding -> 'configuration' -> 'chunk_shape' ->> 0, '') !~ '^[1-9]\d{0,17}$'
     or tensorage.elements((tensorage.shard_grid(d.zarr, d.shape))[2:]) <> 1 then
    return null;
  end if;
  return (sharding -> 'configuration' -> 'chunk_shape' ->> 0)::bigint;
end
$$;

-- The shard that takes so many loose rows behind the last row of an array; null if none does: they would begin within a chunk,
-- fill the shard, or be too many.
create or replace function tensorage.shard_for_loose(d public.datasets, rows bigint) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  each bigint := tensorage.chunk_rows(d);
  extent bigint := tensorage.rows_per_shard(d.zarr);
  row_bytes numeric := d.itemsize::numeric * tensorage.elements(d.shape[2:]);
  shard bigint;
  behind bigint;
  there record;
begin
  if each is null or (rows >= 1 and row_bytes >= 1 and rows * row_bytes <= 131072) is not true then
    return null;
  end if;
  shard := d.shape[1] / extent;
  behind := d.shape[1] % extent;
  if behind + rows >= extent then
    return null;
  end if;
  select t.loose_at, octet_length(t.loose) as bytes into there from public.shards t where t.data_id = d.id and t.number = shard;
  if there.bytes is not null then
    -- An array that became shorter may have some behind its end.
    return case when there.loose_at * row_bytes + there.bytes = behind * row_bytes
                     and there.bytes + rows * row_bytes <= 131072 then shard end;
  elsif behind % each <> 0 then
    return null;
  elsif not found and (behind > 0 and d.fill is null or exists (
      select from tensorage.written w where w.data_id = d.id and w.number = shard)) then
    return null; -- The shard was lost.
  end if;
  return shard;
end
$$;

-- Adds loose rows at the end of an array of Storage, wherever it is by now. Raises TS010 for an array that takes none.
create or replace function tensorage.append_loose(
  data_id bigint, key text, shape bigint[], dtype text, request bytea, elements_at int) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
  bytes bigint := octet_length(request) - elements_at;
  shard bigint;
begin
  select * into d from public.datasets t where t.id = append_loose.data_id and t.state = 'committed' for update;
  if d.id is null then
    raise exception using errcode = 'TS003', message = 'the array to append to was replaced or deleted';
  end if;
  shard := tensorage.shard_for_loose(d, shape[1]);
  if shard is null then
    perform tensorage.check_append(d, key, shape, dtype);
  end if;
  perform tensorage.check_append(d, key, shape, dtype, 'storage');
  if bytes <> tensorage.elements(shape) * d.itemsize then
    raise exception using errcode = 'TS006',
      message = format('rows of shape %s and dtype %s are %s bytes, the request holds %s', tensorage.shape_text(shape), dtype,
                       tensorage.elements(shape) * d.itemsize, bytes);
  end if;
  insert into public.shards as t (data_id, user_id, number, nbytes, index, loose, loose_at)
    values (d.id, d.user_id, shard, 0, '', substr(request, elements_at + 1), d.shape[1] % tensorage.rows_per_shard(d.zarr))
    on conflict on constraint shards_pkey do update
      set loose = coalesce(t.loose, '') || excluded.loose, loose_at = coalesce(t.loose_at, excluded.loose_at);
  if d.fill is not null then
    insert into tensorage.written (data_id, number) values (d.id, shard) on conflict do nothing;
  end if;
  return tensorage.extend(d.id, shape[1], bytes);
end
$$;

-- Reading ------------------------------------------------------------------------------------------

-- The record of a shard, as clients read it. Big-endian:
--   0  8  number              16  4  bytes of the name       36  the object's name, none if the shard has no object;
--   8  8  bytes of the object 20  4  bytes of the index          then the index, the tail, and the loose rows: see
--                             24  4  bytes of the tail           public.shards
--                             28  4  bytes of the loose rows
--                             32  4  the row that they begin at
create or replace function tensorage.shard_record(
  number bigint, nbytes bigint, name text, index bytea, tail bytea, loose bytea, loose_at int) returns bytea
language sql stable as $$
  select int8send(number) || int8send(coalesce(nbytes, 0)) || int4send(coalesce(octet_length(name), 0))
         || int4send(coalesce(octet_length(index), 0)) || int4send(coalesce(octet_length(tail), 0))
         || int4send(coalesce(octet_length(loose), 0)) || int4send(coalesce(loose_at, 0))
         || convert_to(coalesce(name, ''), 'UTF8') || coalesce(index, '') || coalesce(tail, '') || coalesce(loose, '')
$$;

-- The records of all shards of an array, for a client that has not met it before. Null if they are many, or if some are
-- missing: the client asks for those that it needs then, and is told which are lost.
create or replace function tensorage.all_shard_records(d public.datasets) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  shards bigint := tensorage.elements(tensorage.shard_grid(d.zarr, d.shape));
  found bigint;
  records bytea;
begin
  if shards <= 16 then
    select count(*), string_agg(tensorage.shard_record(s.number, s.nbytes, s.name, s.index, s.tail, s.loose, s.loose_at), '')
      into found, records from (
      select * from public.shards t where t.data_id = d.id and t.number < shards order by t.number offset 0) s;
  end if;
  return case when found = shards and octet_length(records) <= 65536 then records end;
end
$$;

-- The records of shards, in order of their numbers, each once: of the objects that hold their elements.
-- With a version: of an array as it was opened. Without: of a dataset that the caller is writing, as many of the
-- shards as there are.
create or replace function public.tensorage_shards(
  data_id bigint, version bigint, numbers bigint[], known jsonb default null)
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
  wanted bigint;
  missing bigint[];
  answer_bytes bigint;
begin
  if version is not null then
    d := tensorage.readable(data_id, version, 'storage', known);
  else
    select * into d from public.datasets s where s.id = tensorage_shards.data_id;
    if not tensorage.is_writing(d) then
      raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
    end if;
    d := tensorage.of_engine(d, 'storage');
  end if;
  perform tensorage.check_pieces(cardinality(numbers));
  -- "offset 0" makes PostgreSQL look up each shard by its number. For "number = any (numbers)", it may read all shards of
  -- the array.
  select count(w.number), coalesce(array_agg(w.number) filter (where w.number is not null and s.number is null), '{}'),
         sum(36 + coalesce(octet_length(s.name), 0) + coalesce(octet_length(s.index), 0) + coalesce(octet_length(s.tail), 0)
             + coalesce(octet_length(s.loose), 0))
    into wanted, missing, answer_bytes
    from (select distinct number from unnest(numbers) number) w left join lateral (
      select t.number, t.name, t.index, t.tail, t.loose from public.shards t
       where t.data_id = d.id and t.number = w.number offset 0) s
      on true;
  if answer_bytes > 16777216 then
    raise exception using errcode = 'TS006',
      message = format('%s shards are too many for one request', wanted), hint = 'Ask for less at a time.';
  elsif version is not null and cardinality(missing) > 0 and (d.fill is null or exists (
      select from unnest(missing) m(number)
       where (m.number between 0 and tensorage.elements(tensorage.shard_grid(d.zarr, d.shape)) - 1) is not true
          or exists (select from tensorage.written w where w.data_id = d.id and w.number = m.number offset 0))) then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s objects asked for are known', wanted - cardinality(missing), wanted),
      hint = 'The selection lies outside of the array, or its shards were deleted behind its back.';
  end if;
  return coalesce((
    select string_agg(tensorage.shard_record(w.number, s.nbytes, s.name, s.index, s.tail, s.loose, s.loose_at), '' order by w.number)
      from (select distinct number from unnest(numbers) number) w left join lateral (
        select t.* from public.shards t where t.data_id = d.id and t.number = w.number offset 0) s on true
     -- A shard that was never written is like one that has no object.
     where s.number is not null or (version is not null and d.fill is not null)), '');
end
$$;

-- True if the bucket has the object of a shard that the caller may read. If Storage says otherwise, a policy is missing.
create or replace function public.tensorage_has_object(data_id bigint, number bigint) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
  object_name text;
begin
  -- One look-up after the other, each by one index: a join may begin at either end.
  select * into d from public.datasets s where s.id = tensorage_has_object.data_id;
  if (d.user_id = me or tensorage.is_writing(d) or (d.state = 'committed' and tensorage.may_use(d.user_id, d.key)))
     is not true then
    return false;
  end if;
  select s.name into object_name from public.shards s where s.data_id = d.id and s.number = tensorage_has_object.number;
  -- Compared by the collation of Storage's index: "C" would make PostgreSQL read all objects of the project.
  return exists (
    select from storage.objects o where o.bucket_id = 'tensors' and o.name = object_name collate "default");
end
$$;

-- Sweeping -----------------------------------------------------------------------------------------

-- Names of objects that the caller's removed, replaced or given up arrays have left, at most max_objects, for the client to
-- delete by requests to Storage. Asked again, it forgets those that are gone, and names others: none if there are no more,
-- or none among the next 100,000 shards.
create or replace function public.tensorage_sweep_objects(max_objects int default 1000) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  room int := least(max_objects, 1000);
  -- Bounded, since a statement has only some seconds: further requests look at the remaining shards.
  seen int := 0;
  names text[] := '{}';
  page record;
  after bigint;
  folder text;
  untold text[];
  d public.datasets;
begin
  -- Staged appends and assignments of an array go with it. They expire now, so that this request names their objects, too.
  perform tensorage.me();
  perform tensorage.give_up(e.id) from unnest(tensorage.expired('storage', 1000000)) e(id);
  for d in
    select * from public.datasets s
     where s.id = any (tensorage.expired('storage', 1000000)) and s.state = 'staged'
     order by s.expires_at, s.id for update skip locked
  loop
    after := -1;
    loop
      exit when room <= 0 or seen >= 100000;
      select count(*) as shards, max(s.number) as last, array_agg(s.number) filter (where not s.has_object) as gone,
             coalesce(array_agg(s.name order by s.number) filter (where s.has_object), '{}') as there
        into page
        from (select t.number, t.name, exists (
                       -- Compared by the collation of Storage's index. "offset 0" makes PostgreSQL look up each one.
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
    -- Objects that a writer has uploaded without telling of them.
    folder := d.user_id || '/' || d.id;
    untold := array(
      select o.name from storage.objects o
       -- Storage's own index of prefixes answers this; '0' comes right after '/'.
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
