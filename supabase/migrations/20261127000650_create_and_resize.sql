-- tensorage: arrays that are there before their elements, and arrays that become longer or shorter.

-- An array with a fill value (public.datasets.fill) reads as that where nothing was written. Its blocks and shards are made
-- when something is written to them, by any number of writers at once: see tensorage.assignable and tensorage.patch.

-- Makes an array without elements, there at once. `fill` is the element that it reads as, its bytes in base64.
create or replace function public.tensorage_create(
  key text, shape bigint[], dtype text, chunk int, fill text, engine text default 'database', is_shared boolean default false,
  attrs jsonb default '{}', dims text[] default null, overwrite boolean default false, operation uuid default null,
  zarr text default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  d := tensorage.stage(json_build_object(
    'key', key, 'shape', shape, 'dtype', dtype, 'chunk', chunk, 'engine', engine, 'is_shared', is_shared,
    'attrs', attrs, 'dims', dims, 'overwrite', overwrite, 'operation', operation, 'zarr', zarr),
    stored_bytes => 0, fill => tensorage.fill_from(fill, dtype));
  perform tensorage.check_one_length(d);
  return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.announce(d)));
end
$$;

-- The bytes of a fill value. Raises unless they are one element of a dtype.
create or replace function tensorage.fill_from(fill text, dtype text) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  element bytea;
begin
  element := decode(fill, 'base64');
  if octet_length(element) is distinct from tensorage.itemsize(dtype) then
    raise exception using errcode = 'TS006', message = format('the fill value has %s bytes, and is no element of dtype %s',
                                                              octet_length(element), left(dtype, 100));
  end if;
  return element;
exception when data_exception then
  raise exception using errcode = 'TS006', message = 'the fill value is no base64';
end
$$;

-- Takes the elements behind the first `rows` from an array, which the caller has locked, for a dataset of their own that is to be
-- swept. Returns the bytes that they took.
create or replace function tensorage.cut_off(d public.datasets, rows bigint) returns numeric
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  -- The first element behind the end, or for Storage the first shard of which nothing is left.
  behind bigint;
  replaced bigint := tensorage.dataset_to_sweep(d);
  freed numeric;
  cut numeric := 0;
begin
  if d.engine = 'database' then
    behind := rows * tensorage.elements(d.shape[2:]);
    with moved as (
      update public.tensors t set data_id = replaced where t.data_id = d.id and t.index >= behind returning t.count)
    select coalesce(sum(m.count::numeric * d.itemsize), 0) into freed from moved m;
    with shortened as (
      update public.tensors t set count = behind - t.index, tensor = substr(t.tensor, 1, ((behind - t.index) * d.itemsize)::int)
       where t.data_id = d.id and t.index > behind - d.block_size and t.index < behind and t.index + t.count > behind
      returning t.index)
    -- The function sees the blocks as they were before.
    select coalesce(sum((t.index + t.count - behind)::numeric * d.itemsize), 0) into cut
      from shortened s join public.tensors t on t.data_id = d.id and t.index = s.index;
  else
    behind := tensorage.shard_behind(d, rows);
    with moved as (
      update public.shards s set data_id = replaced where s.data_id = d.id and s.number >= behind
      returning tensorage.stored_bytes(s.nbytes, s.tail, s.loose) as nbytes)
    select coalesce(sum(m.nbytes), 0) into freed from moved m;
  end if;
  delete from tensorage.written w where w.data_id = d.id and w.number >= behind;
  return freed + cut;
end
$$;

-- Notes that all blocks or shards of an array were written. Raises if one is missing: it would read as the fill value from now on.
-- The setting keeps PostgreSQL to those of the array: it expects an array to have many, and would read the shards of all
-- arrays for a block.
create or replace function tensorage.note_all_written(d public.datasets) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  if d.engine = 'database' then
    perform tensorage.check_complete(d);
  else
    perform tensorage.check_shards(d);
  end if;
  insert into tensorage.written (data_id, number) select d.id, t.index from public.tensors t where t.data_id = d.id
    union all select d.id, s.number from public.shards s where s.data_id = d.id;
exception when sqlstate 'TS004' then
  raise exception using errcode = 'TS004', message = format('not all elements of %L are there', d.key),
    hint = 'Blocks or objects of the array were deleted behind its back: store it again.';
end
$$;

-- Gives an array of the caller another number of rows. Rows that are added read as the fill value: that of the array, or
-- `fill` (the bytes of an element, in base64) for one that has none. Rows are taken from the end. `coords` are the labels that fit.
create or replace function public.tensorage_resize(
  data_id bigint, base_rows bigint, rows bigint, fill text, coords jsonb default null, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  me uuid := tensorage.me();
  d public.datasets;
  freed numeric := 0;
  answer json;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s where s.id = tensorage_resize.data_id and s.user_id = me and s.state = 'committed' for update;
  if d.id is null or d.shape[1] <> base_rows then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  elsif (cardinality(d.shape) > 0 and rows >= 0) is not true then
    raise exception using errcode = 'TS006',
      message = format('the array %L of shape %s cannot have %s rows', d.key, tensorage.shape_text(d.shape), rows);
  end if;
  perform tensorage.check_one_length(d);
  if rows < base_rows then
    freed := tensorage.cut_off(d, rows);
  elsif rows > base_rows and d.fill is null then
    perform tensorage.note_all_written(d);
    d.fill := tensorage.fill_from(fill, d.dtype);
  end if;
  update public.datasets t
     set shape[1] = rows, fill = d.fill, version = t.version + 1, updated_at = now(), stored_bytes = t.stored_bytes - freed,
         stable_since = case when rows < tensorage_resize.base_rows then t.version + 1 else t.stable_since end,
         attrs = t.attrs || case when coords is null then '{}' else jsonb_build_object('tensorage.coords', coords) end
   where t.id = d.id returning t.* into d;
  perform tensorage.note_change(d);
  answer := tensorage.describe_and_sweep(d);
  -- A shorter array makes room, and is so also where its answer does not fit: unless that, or its labels, take more.
  return tensorage.answer(operation, answer, must_fit => rows >= base_rows or freed < octet_length(answer::text));
end
$$;
