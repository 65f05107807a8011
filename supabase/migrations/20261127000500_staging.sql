-- tensorage: datasets that are being written, and the sweeping of those that nobody needs any more.
--
-- A dataset is staged first: only its owner and its writer see it, its bytes are reserved, and it expires after a day. A staged append or
-- assignment is a dataset as well, which the commit merges into its array. Arrays that are replaced or removed become staged
-- datasets that have expired. They are swept piece by piece, since deleting a large array takes longer than a statement may.

-- Staging ------------------------------------------------------------------------------------------

-- Raises if PostgreSQL has crashed since a dataset was begun: requests that were answered may be lost.
create or replace function tensorage.check_uncrashed(d public.datasets) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from tensorage.stagings s where s.data_id = d.id) then
    raise exception using errcode = 'TS003',
      message = format('PostgreSQL failed and came back while %L was being written', d.key),
      detail = 'restarted', hint = 'Write it again from the beginning: nothing has changed.';
  end if;
end
$$;

-- Begins the writing of a staged dataset: reserves room for its bytes.
create or replace function tensorage.begin_staging(d public.datasets) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into tensorage.stagings (data_id) values (d.id);
  insert into tensorage.reservations (data_id, user_id, bytes) values (d.id, d.user_id, tensorage.bytes_to_reserve(d));
end
$$;

-- Ends the writing of a dataset: gives back the room that it needs no longer.
create or replace function tensorage.end_staging(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  delete from tensorage.stagings s where s.data_id = end_staging.id;
  delete from tensorage.reservations r where r.data_id = end_staging.id;
end
$$;

-- The answer to a beginning that was sent before, or null: the answer that is kept, or the dataset that it began. A dataset
-- that was begun before a crash is given up: the client that begins again has sent nothing of it, or sends it again.
create or replace function tensorage.begun(operation uuid) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s where s.operation = begun.operation and s.writer = tensorage.me();
  if d.id is null then
    return null;
  elsif d.state = 'staged' and not exists (select from tensorage.stagings s where s.data_id = d.id) then
    update public.datasets s set operation = null, expires_at = '-infinity' where s.id = d.id and s.state = 'staged';
    perform tensorage.end_staging(d.id);
    return null;
  end if;
  perform tensorage.check_may_go_on(d);
  return tensorage.describe(d);
end
$$;

-- A dataset that the caller is writing, kept from being swept and locked against its commit.
create or replace function tensorage.staged(data_id bigint, engine text default 'database') returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  -- Staged rows need not be on disk before their commit, which waits for all that was written before it. This holds only
  -- if no dataset is committed that was begun before a crash: tensorage.check_uncrashed sees to it.
  perform set_config('synchronous_commit', 'off', true);
  -- Done before the shared lock below is taken: two writers hold that at once, and neither could then update the row.
  update public.datasets s set expires_at = now() + interval '1 day'
   where s.id = staged.data_id and s.writer = tensorage.me() and s.state = 'staged'
     and s.expires_at between now() and now() + interval '12 hours';
  -- A lock that writers share, and that keeps the commit waiting: it must not overtake a block.
  select * into d from public.datasets s where s.id = staged.data_id and s.writer = tensorage.me() for share;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
  elsif d.state <> 'staged' or d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L is no longer being written', d.key);
  end if;
  perform tensorage.check_may_go_on(d);
  perform tensorage.check_uncrashed(d);
  return tensorage.of_engine(d, engine);
end
$$;

-- Sweeping -----------------------------------------------------------------------------------------

-- Gives up the staged appends and assignments of an array that is to be swept, but for those that are being committed.
create or replace function tensorage.give_up(victim bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  given_up bigint;
begin
  for given_up in
    update public.datasets s set append_to = null, assign_to = null, expires_at = '-infinity'
     where s.id = any (array(select w.id from public.datasets w where w.append_to = victim for update skip locked)
                       || array(select w.id from public.datasets w where w.assign_to = victim for update skip locked))
    returning s.id
  loop
    perform tensorage.end_staging(given_up);
  end loop;
end
$$;

-- Deletes a dataset that has neither blocks nor shards any more. The foreign keys look for them all the same: with this setting
-- by their indexes, and else, since PostgreSQL expects an array to have many, through all blocks or shards of all arrays.
create or replace function tensorage.delete_dataset(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  delete from public.datasets d where d.id = delete_dataset.id;
end
$$;

-- Deletes a dataset that has no elements left. Its staged appends and assignments are given up, and swept on their own: a
-- cascade would delete all of their elements at once.
create or replace function tensorage.delete_swept(victim bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  perform tensorage.give_up(victim);
  if not exists (select from public.datasets w where w.append_to = victim)
     and not exists (select from public.datasets w where w.assign_to = victim) then
    perform tensorage.delete_dataset(victim);
  end if;
end
$$;

-- Makes an expired dataset for blocks or shards that are taken from d, and returns its id. They are swept piece by piece: to
-- delete many takes longer than a statement may.
create or replace function tensorage.dataset_to_sweep(d public.datasets) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  made bigint;
begin
  insert into public.datasets (user_id, owner, key, shape, dtype, block_size, engine, zarr, expires_at)
    values (d.user_id, d.owner, d.key, '{0}', d.dtype, d.block_size, d.engine, d.zarr, '-infinity') returning id into made;
  return made;
end
$$;

-- Some expired datasets that the caller sweeps: the own ones, and those by which the caller wrote to arrays of others.
create or replace function tensorage.expired(engine text, max_datasets int) returns bigint[]
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := auth.uid();
begin
  -- Two look-ups, each by its index.
  return array(select d.id from public.datasets d
                where d.user_id = me and d.state = 'staged' and d.expires_at <= now() and d.engine = expired.engine
                order by d.expires_at, d.id limit max_datasets)
      || array(select d.id from public.datasets d
                where d.writer = me and d.writer <> d.user_id and d.state = 'staged' and d.expires_at <= now()
                  and d.engine = expired.engine
                order by d.expires_at, d.id limit max_datasets);
end
$$;

-- Deletes blocks of the caller's expired datasets of the database, at most max_blocks of them, and no further one after max_bytes.
-- Returns how many such datasets are left. Waits for nobody: a writer of a dataset that is to be swept may be waiting for the array
-- that this transaction replaces. Within the steps of a transaction, it does nothing.
--
-- Its bytes take time: PostgreSQL logs each page that a block is deleted from, whole if it has not changed since the last checkpoint.
create or replace function tensorage.sweep(max_blocks int, max_bytes bigint) returns int
language plpgsql set search_path = pg_catalog, pg_temp
-- PostgreSQL expects an array to have many blocks. It would look for one that is left by reading the table from its start:
-- all blocks of all arrays if there is none.
set enable_seqscan = off as $$
declare
  room int := max_blocks;
  bytes_left bigint := max_bytes;
  victim bigint;
  deleted int;
  deleted_bytes bigint;
begin
  if tensorage.in_transaction() then
    return 0;
  end if;
  for victim in
    select d.id from public.datasets d
     where d.id = any (tensorage.expired('database', max_blocks)) and d.state = 'staged'
     order by d.expires_at for update skip locked
  loop
    exit when room <= 0 or bytes_left <= 0;
    perform tensorage.end_staging(victim);
    with gone as (
      delete from public.tensors t where t.data_id = victim and t.index = any (array(
        select b.index
          from (select v.index, octet_length(v.tensor) as nbytes, sum(octet_length(v.tensor)) over (order by v.index) as behind
                  from (select i.index, i.tensor from public.tensors i where i.data_id = victim order by i.index limit room) v) b
         where b.behind - b.nbytes < bytes_left))
      returning octet_length(t.tensor) as nbytes)
    select count(*), coalesce(sum(g.nbytes), 0) into deleted, deleted_bytes from gone g;
    room := room - greatest(deleted, 1);
    bytes_left := bytes_left - deleted_bytes;
    -- Many at a time, since these rows are small.
    delete from tensorage.written w where w.data_id = victim and w.number in (
      select v.number from tensorage.written v where v.data_id = victim order by v.number limit 64 * max_blocks);
    if not exists (select from public.tensors t where t.data_id = victim)
       and not exists (select from tensorage.written w where w.data_id = victim) then
      perform tensorage.delete_swept(victim);
    end if;
  end loop;
  -- Objects are deleted by the client; their reservations are not needed any more.
  perform tensorage.end_staging(e.id) from (
    select d.id from tensorage.reservations r join public.datasets d on d.id = r.data_id
     where r.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now() and d.engine = 'storage'
     limit 64 for update of d skip locked) e;
  -- A few at a time, here too: a user who appended a million times yesterday does not wait for that today.
  perform tensorage.forget(256);
  perform tensorage.forget_writers(256);
  perform tensorage.forget_records(64);
  return cardinality(tensorage.expired('database', 1000000));
end
$$;

-- 1 if the caller has expired datasets whose objects are to be deleted, else 0.
create or replace function tensorage.objects_left() returns int
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return least(cardinality(tensorage.expired('storage', 1)), 1);
end
$$;

-- Sweeps on the way of a request that has something else to do: as many bytes as it brings, so that requests leave no more than
-- they find, and at least 1 MiB. Whatever more a large array leaves is swept behind the writer's back, by tensorage_sweep.
create or replace function tensorage.sweep_on_the_way(brought bigint default 0) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  return tensorage.sweep(64, greatest(brought, 1048576));
end
$$;

-- The answer to a writer, whose request brought so many bytes: the dataset, how many datasets (such as the one it replaced) are left
-- to sweep, and whether there are objects to delete.
create or replace function tensorage.describe_and_sweep(d public.datasets, brought bigint default 0) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- Nobody reads the answer of a step.
  if tensorage.in_transaction() then
    return null;
  end if;
  return tensorage.describe(d)::jsonb
         || jsonb_build_object('left', tensorage.sweep_on_the_way(brought), 'objects_left', tensorage.objects_left());
end
$$;

-- Deletes a further piece of the caller's removed, replaced or expired datasets. Returns how many are left. The piece is small, so that
-- no other request waits long behind it, and a client may stop after any.
create or replace function public.tensorage_sweep() returns int
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform tensorage.me();
  return tensorage.sweep(256, 33554432);
end
$$;
