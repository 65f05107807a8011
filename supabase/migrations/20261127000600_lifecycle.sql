-- tensorage: the life of an array: begun, committed, renamed, removed.

-- Beginning ----------------------------------------------------------------------------------------

-- Raises unless rows of this shape and dtype can be appended to an array.
create or replace function tensorage.check_append(
  target public.datasets, key text, shape bigint[], dtype text, engine text default 'database') returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if target.engine <> engine then
    raise exception using errcode = 'TS010', message = format('the array %L is kept by engine %L', key, target.engine),
      detail = tensorage.describe(target)::text;
  -- Before the shape: the client casts the rows then, and tuples become records of one axis less.
  elsif target.dtype is distinct from dtype then
    raise exception using errcode = 'TS009',
      message = format('rows of dtype %s do not fit the array %L of dtype %s', dtype, key, target.dtype),
      detail = tensorage.describe(target)::text;
  elsif cardinality(target.shape) = 0 or target.shape[2:] is distinct from shape[2:]
        or cardinality(target.shape) <> cardinality(shape) or coalesce(shape[1], -1) < 0 then
    raise exception using errcode = 'TS006',
      message = format('rows of shape %s do not fit the array %L of shape %s', tensorage.shape_text(shape), key,
                       tensorage.shape_text(target.shape)),
      hint = 'All but the first axis have to be the same.';
  elsif target.shape[1]::numeric + shape[1] > 9223372036854775807 then
    raise exception using errcode = 'TS006', message = format('the array %L has no room for %s more rows', key, shape[1]);
  end if;
end
$$;

-- Zarr metadata of a request, if the shape of a shard can be taken from them.
create or replace function tensorage.zarr_of(metadata text) returns json
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
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

-- Makes a dataset from `asked`: key, shape, dtype, chunk, engine, zarr, is_shared, attrs, dims, operation, append
-- (rows for an existing array of the database, perhaps of another `owner`), overwrite (an existing array may be replaced). It is staged,
-- unless `stored_bytes` are given: then it is the array under its key at once, whose elements, of so many bytes, the same request
-- puts there, and ends by tensorage.announce. It needs no reservation: its bytes are counted at the end. An array with a `fill`
-- need not have elements.
create or replace function tensorage.stage(
  asked json, stored_bytes numeric default null, fill bytea default null) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  is_array boolean := stage.stored_bytes is not null;
  -- Parsed once: metadata and indexes are long.
  wanted record;
  d public.datasets;
  target public.datasets;
  asked_shape bigint[];
  its_owner uuid := tensorage.me();
  replaced bigint;
begin
  select * into wanted from json_to_record(asked) as a(
    key text, dtype text, chunk int, engine text, zarr text, is_shared json, append json, overwrite json, owner text,
    attrs jsonb, dims json, operation uuid);
  -- Not from there, where a null is no null of JSON.
  asked_shape := array(select json_array_elements_text(asked -> 'shape')::bigint);
  if coalesce(json_typeof(wanted.append), 'null') not in ('boolean', 'null')
     or coalesce(json_typeof(wanted.overwrite), 'null') not in ('boolean', 'null')
     or coalesce(json_typeof(wanted.is_shared), 'null') not in ('boolean', 'null') then
    raise exception using errcode = 'TS006', message = 'append, overwrite and is_shared are true or false, and nothing else';
  end if;
  if wanted.append::text = 'true' then
    target := tensorage.find(wanted.key, wanted.owner, to_write => true);
    if target.id is null then
      perform tensorage.raise_missing(wanted.key, wanted.owner);
    end if;
    perform tensorage.check_append(target, wanted.key, asked_shape, wanted.dtype);
    if wanted.engine <> 'database' then
      raise exception using errcode = 'TS010',
        message = format('the array %L is kept by engine %L', target.key, target.engine),
        detail = tensorage.describe(target)::text;
    end if;
    its_owner := target.user_id;
    -- Locked until the row below refers to it: another request may just be replacing and sweeping it.
    perform from public.datasets t where t.id = target.id and t.state = 'committed' for key share;
    if not found then
      raise exception using errcode = 'TS003', message = 'the array to append to was replaced or deleted';
    end if;
  elsif wanted.owner is not null then
    raise exception using errcode = 'TS006', message = 'nobody makes arrays for others';
  end if;
  if is_array then
    perform tensorage.lock_key(wanted.key);
    if wanted.overwrite::text = 'true' then
      replaced := tensorage.hide(wanted.key);
    end if;
  elsif target.id is null and wanted.overwrite::text is distinct from 'true' and exists (
      select from public.datasets t where t.user_id = its_owner and t.key = wanted.key and t.state = 'committed') then
    raise exception using errcode = 'TS002', message = format('the key %L is taken', wanted.key);
  end if;
  -- An array is inserted as one: to insert it as staged, and to publish it, would write all its indexes twice.
  insert into public.datasets (
      user_id, owner, key, shape, dtype, block_size, engine, zarr, share_at_commit, attrs, dims, overwrite, operation, append_to,
      fill, state, expires_at, version, stable_since, stored_bytes)
    values (
      its_owner, tensorage.address_of(its_owner), wanted.key, asked_shape, wanted.dtype,
      -- A single element written to an array with a fill value makes a whole block.
      case when target.fill is null then wanted.chunk else least(wanted.chunk, target.block_size) end,
      coalesce(wanted.engine, 'database'), tensorage.zarr_of(wanted.zarr),
      coalesce(wanted.is_shared::text = 'true', false), coalesce(wanted.attrs, '{}'),
      case json_typeof(wanted.dims) when 'array' then array(select json_array_elements_text(wanted.dims)) end,
      coalesce(wanted.overwrite::text = 'true', false), wanted.operation, target.id, stage.fill,
      case when is_array then 'committed' else 'staged' end, case when not is_array then now() + interval '1 day' end,
      coalesce(replaced, 0) + 1, coalesce(replaced, 0) + 1, stage.stored_bytes)
    on conflict (user_id, key) where state = 'committed' do nothing
    returning * into d;
  if d.id is null then
    raise exception using errcode = 'TS002', message = format('the key %L is taken', wanted.key);
  end if;
  if d.engine = 'storage' then
    -- Raises now if shards and shape do not fit, not at the commit, when all objects have been uploaded.
    perform tensorage.elements(tensorage.shard_grid(d.zarr, d.shape));
  end if;
  if not is_array then
    perform tensorage.begin_staging(d);
  end if;
  return d;
end
$$;

-- Stores an array of Storage in one request: its chunks are in the tails of its shards, and no object comes with them. Meta: what
-- tensorage.stage makes a dataset from, and `shards`: {"number", "index" in base64, and in "tail" the number of its bytes}. The tails
-- follow in this order.
create or replace function public.tensorage_store_tails(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  operation uuid := (h.meta ->> 'operation')::uuid;
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  elsif h.meta ->> 'append' = 'true' then
    raise exception using errcode = 'TS006', message = 'rows are appended by tensorage_append_tails, not stored';
  end if;
  d := tensorage.of_engine(tensorage.stage(h.meta, h.count), 'storage');
  perform tensorage.insert_tails(d, h.meta -> 'shards', $1, h.elements_at, h.count);
  return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.announce(d)));
end
$$;

-- Declares an array that comes in several requests: a staged dataset, for tensorage_put, or for objects and
-- tensorage_put_shards. Its answer is not kept, as that of no beginning is: the dataset itself bears the operation.
create or replace function public.tensorage_begin(
  key text, shape bigint[], dtype text, chunk int, engine text default 'database', is_shared boolean default false,
  attrs jsonb default '{}', dims text[] default null, overwrite boolean default false, append boolean default false,
  operation uuid default null, zarr text default null, owner text default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.begun(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  elsif not append then
    perform tensorage.check_room_for_array(key);
  end if;
  d := tensorage.stage(json_build_object(
    'key', key, 'shape', shape, 'dtype', dtype, 'chunk', chunk, 'engine', engine, 'is_shared', is_shared,
    'attrs', attrs, 'dims', dims, 'overwrite', overwrite, 'append', append, 'operation', operation, 'zarr', zarr,
    'owner', owner));
  perform tensorage.sweep_on_the_way();
  return tensorage.answer(null, tensorage.describe(d));
end
$$;

-- Begins an assignment of several requests: a staged dataset, for tensorage_patch, or for objects and
-- tensorage_put_shards. Reserves as much as the array takes.
create or replace function public.tensorage_begin_assign(
  data_id bigint, version bigint, operation uuid default null, engine text default 'database', known jsonb default null)
returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.begun(operation);
  target public.datasets;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  target := tensorage.assignable(data_id, version, engine, known);
  insert into public.datasets (
      user_id, owner, key, shape, dtype, block_size, engine, zarr, operation, assign_to, assign_version, fill, expires_at)
    values (
      target.user_id, target.owner, target.key, target.shape, target.dtype, target.block_size, target.engine, target.zarr,
      tensorage_begin_assign.operation, target.id, target.version, target.fill, now() + interval '1 day')
    returning * into d;
  perform tensorage.begin_staging(d);
  perform tensorage.sweep_on_the_way();
  return tensorage.answer(null, tensorage.describe(d));
end
$$;

-- Makes a staged dataset of rows of this shape, to be added behind the `base_rows` rows of an array of Storage. The request that
-- also publishes it locks the array for that now: of two that had it locked for less, each would wait for the other.
create or replace function tensorage.stage_append(
  data_id bigint, shape bigint[], base_rows bigint, operation uuid, known jsonb, is_published_now boolean)
returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  target public.datasets;
  d public.datasets;
begin
  select * into target from public.datasets s where s.id = stage_append.data_id;
  if (target.user_id = tensorage.me() or tensorage.is_shared_with_me(target.user_id, target.key, true)) is not true then
    perform tensorage.raise_not_writable(target, 'TS003', 'the array to append to has changed since it was opened');
  end if;
  if is_published_now then
    select * into target from public.datasets s where s.id = stage_append.data_id for update;
  else
    select * into target from public.datasets s where s.id = stage_append.data_id for key share;
  end if;
  if target.id is null or target.state <> 'committed' or target.shape[1] is distinct from base_rows
     or not tensorage.is_as_known(target, known) then
    raise exception using errcode = 'TS003', message = 'the array to append to has changed since it was opened';
  end if;
  perform tensorage.check_append(target, target.key, shape, target.dtype, 'storage');
  insert into public.datasets (
      user_id, owner, key, shape, dtype, block_size, engine, zarr, operation, append_to, base_rows, expires_at)
    values (
      target.user_id, target.owner, target.key, stage_append.shape, target.dtype, target.block_size, target.engine,
      target.zarr, stage_append.operation, target.id, target.shape[1], now() + interval '1 day')
    returning * into d;
  if not is_published_now then
    perform tensorage.begin_staging(d);
  end if;
  return d;
end
$$;

-- Begins an append to an array of Storage, of rows of this shape behind its `base_rows`: a staged dataset, for objects and
-- tensorage_put_shards. `known` is what the client remembers of the array, for tensorage.is_as_known.
create or replace function public.tensorage_begin_append(
  data_id bigint, shape bigint[], base_rows bigint, operation uuid default null, known jsonb default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.begun(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  d := tensorage.stage_append(data_id, shape, base_rows, operation, known, false);
  perform tensorage.sweep_on_the_way();
  return tensorage.answer(null, tensorage.describe(d));
end
$$;

-- Appends rows of this shape behind the `base_rows` of an array of Storage, in one request: their chunks are in the tails of
-- `shards`, and no object comes with them. See tensorage.put_shards; `known` as for tensorage_begin_append.
create or replace function public.tensorage_append_tails(
  data_id bigint, shape bigint[], base_rows bigint, shards json, operation uuid default null, known jsonb default null)
returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  elsif exists (select from json_to_recordset(shards) as s(name text) where s.name is not null) then
    raise exception using errcode = 'TS006', message = 'an append in one request has no objects';
  end if;
  d := tensorage.stage_append(data_id, shape, base_rows, null, known, true);
  perform tensorage.put_shards(d, shards);
  return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish_shards(d)));
exception when data_exception then
  raise exception using errcode = 'TS006', message = format('these are no shards: %s', sqlerrm);
end
$$;

-- Gives up a staged dataset. Returns how many datasets are left to sweep.
create or replace function public.tensorage_abort(data_id bigint) returns int
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  -- Asked for whatever there is: a condition of the statement below would be looked at for a dataset alone.
  me uuid := tensorage.me();
begin
  update public.datasets s set expires_at = '-infinity'
   where s.id = tensorage_abort.data_id and s.writer = me and s.state = 'staged';
  if found then
    perform tensorage.end_staging(data_id);
  end if;
  return tensorage.sweep(256, 1048576);
end
$$;

-- Committing ---------------------------------------------------------------------------------------

-- Number of the lock of all keys of the caller.
create or replace function tensorage.all_keys() returns bigint
language sql stable as $$
  select hashtextextended(format('tensorage keys of %s', auth.uid()), 0)
$$;

-- Makes one writer after the other replace the array under a key. Taken before the row of that array is locked: all writers
-- lock in this order, so that none waits for another in a circle. A holder of the lock of a key shares that of all keys.
create or replace function tensorage.lock_key(key text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(current_setting('tensorage.has_all_keys', true), '') <> 'on' then
    perform pg_advisory_xact_lock_shared(tensorage.all_keys());
    perform pg_advisory_xact_lock(hashtextextended(format('tensorage key %s of %s', key, auth.uid()), 0));
  end if;
end
$$;

-- Locks all keys of the caller by one lock, for a transaction that changes many.
create or replace function tensorage.lock_all_keys() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_advisory_xact_lock(tensorage.all_keys());
  perform set_config('tensorage.has_all_keys', 'on', true);
end
$$;

-- Hides the committed array under a key, except `but`, to be swept. Returns its version, or null if there is none. The caller
-- holds the lock of the key.
create or replace function tensorage.hide(key text, but bigint default 0) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := auth.uid();
  hidden bigint;
begin
  with found as (
    update public.datasets o set state = 'staged', expires_at = '-infinity', operation = null
     where o.user_id = me and o.key = hide.key and o.state = 'committed' and o.id <> but
    returning o.version)
  select f.version into hidden from found f;
  return hidden;
end
$$;

-- Notes that an array is new under its key, or in place of another one, and shares it if it was declared so.
create or replace function tensorage.announce(d public.datasets) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform tensorage.note(d.user_id, case when d.version = 1 then 'created' else 'replaced' end, d.key);
  if d.share_at_commit then
    perform tensorage.lock_shares();
    perform tensorage.put_share(d.key, '', false, null);
    perform tensorage.note(d.user_id, 'shared', d.key);
  end if;
  return d;
end
$$;

-- Makes the complete, locked, staged dataset d, of so many bytes, the array under its key.
create or replace function tensorage.publish(d public.datasets, stored_bytes numeric) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  published public.datasets;
  replaced bigint;
begin
  perform tensorage.lock_key(d.key);
  if d.overwrite then
    replaced := tensorage.hide(d.key, d.id);
  end if;
  update public.datasets c set state = 'committed', expires_at = null, updated_at = now(),
         version = coalesce(replaced, 0) + 1, stable_since = coalesce(replaced, 0) + 1, stored_bytes = publish.stored_bytes
   where c.id = d.id returning * into published;
  perform tensorage.end_staging(d.id);
  return tensorage.announce(published);
exception when unique_violation then
  raise exception using errcode = 'TS002', message = format('the key %L is taken', d.key);
end
$$;

-- Raises if the caller may not write to an array any more: it was locked after the caller's right was looked at, and its owner
-- may have ended the share meanwhile, or given it a key that is not shared.
create or replace function tensorage.check_still_writable(d public.datasets) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not tensorage.may_use(d.user_id, d.key, true) then
    raise exception using errcode = 'TS003', message = format('the array %L is not shared with you for writing any more', d.key);
  end if;
end
$$;

-- Adds `rows` to the length of an array, for elements of `added_bytes` that the caller puts there. Returns the array, locked, in its new
-- shape.
create or replace function tensorage.extend(target_id bigint, rows bigint, added_bytes numeric) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  target public.datasets;
begin
  -- Writers who assign to an array with a fill value have its blocks before they have its row. They are waited for here.
  perform from public.datasets t where t.id = target_id and t.fill is not null for update;
  update public.datasets t
     set shape[1] = t.shape[1] + rows, version = t.version + 1, updated_at = now(),
         stored_bytes = t.stored_bytes + added_bytes
   where t.id = target_id and t.state = 'committed' returning * into target;
  if target.id is null then
    raise exception using errcode = 'TS003', message = 'the array to append to was replaced or deleted';
  end if;
  perform tensorage.check_still_writable(target);
  perform tensorage.note_change(target);
  return target;
end
$$;

-- Notes that elements of an array have changed: its readers begin anew. They take `added_bytes` more than before.
create or replace function tensorage.changed(id bigint, added_bytes numeric default 0) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  update public.datasets t
     set version = t.version + 1, stable_since = t.version + 1, updated_at = now(),
         stored_bytes = t.stored_bytes + added_bytes
   where t.id = changed.id returning t.* into d;
  perform tensorage.check_still_writable(d);
  perform tensorage.note_change(d);
  return d;
end
$$;

-- Makes a complete staged dataset visible in one step: as an array, or, if it was begun as one, as an append to its array or
-- an assignment. The last of its shards may come along. The functions that check and move elements are in the files on
-- blocks and shards.
create or replace function public.tensorage_commit(
  data_id bigint, operation uuid default null, shards json default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
  target public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.id = tensorage_commit.data_id and s.writer = tensorage.me() for update;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
  elsif d.state = 'committed' then
    return tensorage.describe(d);
  elsif d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L was aborted', d.key);
  end if;
  perform tensorage.check_may_go_on(d);
  perform tensorage.check_uncrashed(d);
  if shards is not null then
    perform tensorage.put_shards(tensorage.of_engine(d, 'storage'), shards);
  end if;
  if d.engine = 'storage' then
    if d.append_to is not null or d.assign_to is not null then
      return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish_shards(d)));
    end if;
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish(d, tensorage.check_shards(d))));
  elsif d.assign_to is not null then
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish_assignment(d)));
  end if;
  perform tensorage.check_complete(d);
  if d.append_to is null then
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish(d, tensorage.block_bytes(d))));
  end if;
  target := tensorage.extend(d.append_to, d.shape[1], tensorage.block_bytes(d));
  update public.tensors t
     set data_id = target.id, index = t.index + tensorage.elements(target.shape) - tensorage.elements(d.shape)
   where t.data_id = d.id;
  perform tensorage.note_blocks(target, tensorage.elements(target.shape) - tensorage.elements(d.shape));
  update public.datasets t set block_size = greatest(t.block_size, d.block_size) where t.id = target.id returning * into target;
  perform tensorage.delete_dataset(d.id);
  perform tensorage.merge_tail(target);
  return tensorage.answer(operation, tensorage.describe(target));
end
$$;

-- Renaming and removing ----------------------------------------------------------------------------

-- Number of the lock of the caller's renamings.
create or replace function tensorage.renamings() returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
  select hashtextextended(format('tensorage renamings of %s', auth.uid()), 0)
$$;

-- Gives an array of the caller another key. Its shares go with it, and join those of the array that it replaces.
create or replace function public.tensorage_rename(
  key text, new_key text, overwrite boolean default false, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  replaced bigint;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  -- All renamings lock in one order, so that two of them to each other's keys do not wait for each other. No other one goes on
  -- while all below a prefix is renamed, of which the keys are not locked one by one.
  perform pg_advisory_xact_lock_shared(tensorage.renamings());
  perform tensorage.lock_key(least(key, new_key collate "C"));
  perform tensorage.lock_key(greatest(key, new_key collate "C"));
  -- Both arrays, in the order in which a request that locks all below a prefix has them.
  perform from public.datasets s
    where s.user_id = tensorage.me() and s.key in (tensorage_rename.key, tensorage_rename.new_key) and s.state = 'committed'
    order by s.id for update;
  select * into d from public.datasets s
   where s.user_id = tensorage.me() and s.key = tensorage_rename.key and s.state = 'committed' for update;
  if d.id is null then
    perform tensorage.raise_missing(key, null);
  elsif key = new_key then
    return tensorage.describe(d);
  elsif overwrite then
    replaced := tensorage.hide(new_key, d.id);
  end if;
  update public.datasets s
     set key = new_key, version = greatest(s.version, coalesce(replaced, 0)) + 1, updated_at = now()
   where s.id = d.id returning * into d;
  perform tensorage.move_shares(key, new_key);
  if replaced is not null then
    perform tensorage.note(d.user_id, 'replaced', new_key);
  end if;
  perform tensorage.note(d.user_id, 'renamed', new_key, key);
  -- The new key may be shared with fewer.
  perform tensorage.end_writes_of_others();
  return tensorage.answer(operation, tensorage.describe_and_sweep(d));
exception when unique_violation then
  raise exception using errcode = 'TS002', message = format('the key %L is taken', new_key);
end
$$;

-- Deletes an array of the caller, and its shares. {"left": datasets still to be swept, "objects_left": whether objects are}
create or replace function public.tensorage_remove(key text, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  removed bigint;
begin
  if before is not null then
    return before;
  end if;
  -- A request that just replaces the array is waited for: else neither the old nor the new one would be found.
  perform tensorage.lock_key(key);
  update public.datasets d set state = 'staged', expires_at = '-infinity', operation = null
   where d.user_id = tensorage.me() and d.key = tensorage_remove.key and d.state = 'committed' returning d.id into removed;
  if removed is null then
    perform tensorage.raise_missing(key, null);
  end if;
  perform tensorage.end_shares(array[key]);
  perform tensorage.note(auth.uid(), 'deleted', key);
  return tensorage.answer(operation, json_build_object(
    'id', removed, 'left', tensorage.sweep(256, 1048576), 'objects_left', tensorage.objects_left()), must_fit => false);
end
$$;

-- Locks the arrays of the caller whose keys begin with a prefix, in the order of their ids, in which all requests that lock
-- several arrays do it: a key may have changed since this request looked. Returns the ids. Called by itself: within a query, it
-- may be called for each row.
create or replace function tensorage.lock_below(prefix text) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  return array(select d.id from public.datasets d
                where d.user_id = auth.uid() and d.state = 'committed' and d.key >= prefix and d.key <= tensorage.last_key(prefix)
                order by d.id for update);
end
$$;

-- Deletes all arrays of the caller whose keys begin with a prefix, and their shares, in one step.
-- {"keys": how many, "left", "objects_left": as for tensorage_remove}
create or replace function public.tensorage_remove_all(prefix text, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off as $$
declare
  before json := tensorage.answered(operation);
  me uuid := tensorage.me();
  ids bigint[];
  keys text[];
begin
  if before is not null then
    return before;
  end if;
  ids := tensorage.lock_below(prefix);
  if cardinality(ids) = 0 then
    -- The answer is not kept: it makes no room, and kept ones would take more of it than there may be.
    operation := null;
  end if;
  with hidden as (
    update public.datasets d set state = 'staged', expires_at = '-infinity', operation = null
     where d.id = any (ids) returning d.key)
  select array_agg(h.key order by h.key) into keys from hidden h;
  perform tensorage.end_shares(keys);
  perform tensorage.note(me, 'deleted', k.key) from unnest(keys) k(key);
  return tensorage.answer(operation, json_build_object(
    'keys', cardinality(ids), 'left', tensorage.sweep(256, 1048576), 'objects_left', tensorage.objects_left()), must_fit => false);
end
$$;

-- Gives all arrays of the caller whose keys begin with a prefix keys that begin with another one, in one step. Their shares go
-- with them; shares of files stay, and those of a prefix whose new name has other arrays or files below it.
-- {"keys": how many}
create or replace function public.tensorage_rename_all(prefix text, new_prefix text, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off as $$
declare
  before json := tensorage.answered(operation);
  me uuid := tensorage.me();
  ids bigint[];
  keys text[];
  prefixes text[];
begin
  if before is not null then
    return before;
  end if;
  perform pg_advisory_xact_lock(tensorage.renamings());
  ids := tensorage.lock_below(prefix);
  if cardinality(ids) = 0 then
    raise exception using errcode = 'TS001', message = format('you have no arrays whose keys begin with %L', prefix);
  elsif prefix = new_prefix then
    return json_build_object('keys', cardinality(ids));
  end if;
  -- New keys may be old ones of others among them: the index of keys is looked at after each row. All leave it first.
  with out_of_sight as (
    update public.datasets s set state = 'staged', expires_at = 'infinity' where s.id = any (ids) returning s.key)
  select array_agg(o.key) into keys from out_of_sight o;
  prefixes := tensorage.movable_prefixes(prefix, new_prefix);
  update public.datasets s
     set key = new_prefix || substr(s.key, length(prefix) + 1), state = 'committed', expires_at = null,
         version = s.version + 1, updated_at = now()
   where s.id = any (ids);
  perform tensorage.move_all_shares(prefix, new_prefix, keys, prefixes);
  perform tensorage.note(me, 'renamed', s.key, prefix || substr(s.key, length(new_prefix) + 1))
     from public.datasets s where s.id = any (ids) order by s.key;
  perform tensorage.end_writes_of_others();
  return tensorage.answer(operation, json_build_object('keys', cardinality(ids)));
exception when unique_violation then
  raise exception using errcode = 'TS002', message = format('keys that begin with %L are taken', new_prefix);
when check_violation then
  raise exception using errcode = 'TS006', message = format('with %L, keys would be too long', new_prefix);
end
$$;
