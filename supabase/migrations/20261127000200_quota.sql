-- tensorage: quotas, and the totals of each user.
--
-- A quota of bytes counts what is stored: blocks and shards with their rows, entries of the catalogue with their attributes, answers
-- that are kept, and objects and files by the size that Storage says they have. A quota of arrays counts those that are
-- committed. All counts against the owner, whoever wrote it. tensorage.usage has one row a user.
-- Triggers note what each row adds or takes away (tensorage.move), and the transaction adds the sum to the total as the last
-- thing that it does (tensorage.settle): a request that holds the lock of a total waits for nothing else.

-- Sizes --------------------------------------------------------------------------------------------

-- Bytes of a row beside its values: its header, its place in the page and in the index. The functions of sizes have no
-- search_path of their own, so that PostgreSQL puts their text in place of each call.
create or replace function tensorage.row_bytes() returns int
language sql immutable as $$ select 128 $$;

-- Bytes of an entry of the catalogue: four rows' worth for its many short columns and indexes, and the long ones: an
-- element, which a fill value is, may have a mebibyte. Not pg_column_size(), whose answer differs between a stored value and
-- one that is about to be stored.
create or replace function tensorage.entry_bytes(key text, dtype text, attrs jsonb, dims text[], fill bytea, zarr json) returns int
language sql stable as $$
  select 4 * tensorage.row_bytes() + octet_length(key) + octet_length(dtype) + octet_length(attrs::text)
         + coalesce(octet_length(dims::text), 0) + coalesce(octet_length(fill), 0) + coalesce(octet_length(zarr::text), 0)
$$;

-- Bytes of a shard's row. Its object is counted with the other objects.
create or replace function tensorage.shard_bytes(
  name text, index bytea, tail bytea, loose bytea, filled int8multirange, based_on text) returns int
language sql stable as $$
  select tensorage.row_bytes() + coalesce(octet_length(name), 0) + octet_length(index) + coalesce(octet_length(tail), 0)
         + coalesce(octet_length(loose), 0) + coalesce(octet_length(filled::text), 0) + coalesce(octet_length(based_on), 0)
$$;

-- Bytes of a share: its row, and its indexes.
create or replace function tensorage.share_bytes(pattern text, reader text) returns int
language sql immutable as $$
  select 4 * (tensorage.row_bytes() + octet_length(pattern) + octet_length(reader))
$$;

-- Bytes of a record of who did what: its row, and its indexes.
create or replace function tensorage.record_bytes(key text, detail text) returns int
language sql immutable as $$
  select 2 * (tensorage.row_bytes() + octet_length(key)) + coalesce(octet_length(detail), 0)
$$;

-- Bytes of an object of Storage: its size, and Storage's row of it, whose name stands in two columns and two indexes. An
-- object without bytes takes room, too, since its sender may attach up to a mebibyte of metadata. The size is missing while
-- an upload is only being tried.
create or replace function tensorage.object_bytes(name text, metadata jsonb, user_metadata jsonb) returns bigint
language sql immutable as $$
  select case when metadata ->> 'size' ~ '^[0-9]{1,18}$' then (metadata ->> 'size')::bigint else 0 end
         + 4 * (tensorage.row_bytes() + octet_length(name))
         + coalesce(octet_length(metadata::text), 0) + coalesce(octet_length(user_metadata::text), 0)
$$;

-- Bytes that a dataset takes at most if it is written as declared, in blocks of its block_size; objects are mostly smaller. 1024
-- of them are for the answers of the requests that write it. Nobody knows how much will be written of an array with a fill
-- value: its blocks find room as they come.
create or replace function tensorage.bytes_to_reserve(d public.datasets) returns numeric
language sql immutable as $$
  select 1024 + case when d.fill is not null then 0 else d.nbytes + case d.engine when 'database' then
    tensorage.row_bytes() * ceil(d.nbytes / d.itemsize / d.block_size) else 0 end end
$$;

-- The folder of an object, inside the user's folder, if it is one of an array. Folders that are named by a number hold
-- arrays, all others files.
create or replace function tensorage.folder_of_array(object_name text) returns text
language sql immutable as $$
  select case when object_name ~ '^[^/]*/[0-9]+/' then split_part(object_name, '/', 2) end
$$;

-- Moves within a transaction -----------------------------------------------------------------------

-- Notes that a row adds bytes to a user's total, or takes them away. `data_id` is the dataset whose reservation they use
-- up; 0 for none. Two other numbers move other totals than that of bytes: -1 that of arrays, -2 that of the bytes of files.
create or replace function tensorage.move(user_id uuid, data_id bigint, bytes numeric) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  -- A setting of the transaction is rolled back with it, and with each savepoint. Only datasets with a reservation have
  -- an entry of their own: the setting stays short when rows of a hundred thousand datasets are deleted.
  moves jsonb := coalesce(nullif(current_setting('tensorage.moves', true), ''), '{}');
  name text := move.user_id || '/' || case
    when move.bytes > 0 and move.data_id > 0 and exists (select from tensorage.reservations r where r.data_id = move.data_id)
    then move.data_id else least(move.data_id, 0) end;
begin
  perform set_config(
    'tensorage.moves', (moves || jsonb_build_object(name, coalesce((moves ->> name)::numeric, 0) + move.bytes))::text, true);
end
$$;

-- The bytes that a user may store; null for any number.
create or replace function tensorage.quota_of(user_id uuid) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  return coalesce((select q.max_bytes from tensorage.quotas q where q.user_id = quota_of.user_id),
                  (select s.default_quota_bytes from tensorage.settings s where s.only_row));
end
$$;

-- The arrays that a user may store; null for any number.
create or replace function tensorage.array_quota_of(user_id uuid) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  return coalesce((select q.max_arrays from tensorage.quotas q where q.user_id = array_quota_of.user_id),
                  (select s.default_quota_arrays from tensorage.settings s where s.only_row));
end
$$;

-- Takes bytes that have come from the reservation of their dataset. Returns how many of them were reserved.
create or replace function tensorage.use_reservation(data_id bigint, bytes numeric) returns numeric
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  used numeric := 0;
begin
  if data_id > 0 and bytes > 0 then
    select least(r.bytes, use_reservation.bytes) into used
      from tensorage.reservations r where r.data_id = use_reservation.data_id for update;
    if used > 0 then
      update tensorage.reservations r set bytes = r.bytes - used where r.data_id = use_reservation.data_id;
    end if;
  end if;
  return coalesce(used, 0);
end
$$;

-- Raises if a user has more arrays than the quota allows: `total` of them, of which `added` are new.
create or replace function tensorage.check_arrays(user_id uuid, total bigint, added bigint) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  allowed bigint := tensorage.array_quota_of(user_id);
begin
  if total > allowed then
    raise exception using errcode = 'TS005',
      message = format('%s more arrays do not fit: there are %s of %s arrays', added, total - added, allowed),
      detail = json_build_object('asked_arrays', added, 'arrays', total - added, 'allowed_arrays', allowed)::text,
      hint = 'Delete arrays, or ask whoever runs the project for a larger quota.';
  end if;
end
$$;

-- Adds to the totals of a user, and raises if they must fit and do not.
create or replace function tensorage.add_to_total(
  user_id uuid, bytes numeric, file_bytes numeric, arrays bigint, must_fit boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  total tensorage.usage;
  allowed bigint;
begin
  if bytes = 0 and file_bytes = 0 and arrays = 0 then
    return;
  end if;
  update tensorage.usage u
     set bytes = u.bytes + add_to_total.bytes, file_bytes = u.file_bytes + add_to_total.file_bytes,
         arrays = u.arrays + add_to_total.arrays
   where u.user_id = add_to_total.user_id returning u.* into total;
  if not found then
    -- No row is made for a user who is just being deleted.
    insert into tensorage.usage as u (user_id, bytes, file_bytes, arrays)
      select a.id, add_to_total.bytes, add_to_total.file_bytes, add_to_total.arrays
        from auth.users a where a.id = add_to_total.user_id
      on conflict on constraint usage_pkey do update
        set bytes = u.bytes + excluded.bytes, file_bytes = u.file_bytes + excluded.file_bytes,
            arrays = u.arrays + excluded.arrays
    returning u.* into total;
  end if;
  if must_fit and bytes > 0 then
    allowed := tensorage.quota_of(user_id);
    if total.bytes > allowed and user_id is distinct from auth.uid() then
      -- Somebody else, with whom an array is shared for writing, is not told how much its owner has and may have.
      raise exception using errcode = 'TS005', message = format('%s more bytes do not fit into the quota of the owner', bytes),
        hint = 'Ask the owner to make room.';
    elsif total.bytes > allowed then
      raise exception using errcode = 'TS005',
        message = format('%s more bytes do not fit: %s of %s bytes are in use', bytes, total.bytes - bytes, allowed),
        detail = json_build_object('asked', bytes, 'used', total.bytes - bytes, 'allowed', allowed)::text,
        hint = 'What was replaced or deleted counts until tensorage_sweep has answered 0.';
    end if;
  end if;
  if must_fit and arrays > 0 then
    perform tensorage.check_arrays(user_id, total.arrays, arrays);
  end if;
end
$$;

-- Adds the moves of this transaction to the totals of its users, and raises if they must fit and do not. Each total is one
-- updated row: of two writers at once, the second sees the total that the first has left.
create or replace function tensorage.settle(must_fit boolean default true) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  moves jsonb := nullif(current_setting('tensorage.moves', true), '');
  totals jsonb := '{}';
  m record;
begin
  if moves is null then
    return;
  end if;
  perform set_config('tensorage.moves', '', true);
  -- All transactions lock in the same order: reservations by dataset, then totals by user.
  for m in
    select split_part(e.key, '/', 1) as user_id, split_part(e.key, '/', 2)::bigint as data_id, e.value::numeric as bytes
      from jsonb_each_text(moves) e where split_part(e.key, '/', 2)::bigint >= 0 order by 2, 1
  loop
    totals := totals || jsonb_build_object(
      m.user_id, coalesce((totals ->> m.user_id)::numeric, 0) + m.bytes - tensorage.use_reservation(m.data_id, m.bytes));
  end loop;
  for m in
    select u.id::uuid as user_id, coalesce((totals ->> u.id)::numeric, 0) as bytes,
           coalesce((moves ->> (u.id || '/-2'))::numeric, 0) as file_bytes,
           coalesce((moves ->> (u.id || '/-1'))::bigint, 0) as arrays
      from (select distinct split_part(name, '/', 1) as id from jsonb_object_keys(moves) name) u order by 1
  loop
    perform tensorage.add_to_total(m.user_id, m.bytes, m.file_bytes, m.arrays, must_fit);
  end loop;
end
$$;

-- Raises if a user's total has reached the quota. For uploads, whose size is not known before they are there.
create or replace function tensorage.check_room(user_id uuid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  allowed bigint := tensorage.quota_of(user_id);
  total numeric := (select u.bytes from tensorage.usage u where u.user_id = check_room.user_id);
begin
  if total >= allowed then
    raise exception using errcode = 'TS005',
      message = format('more bytes do not fit: %s of %s bytes are in use', total, allowed),
      detail = json_build_object('asked', null, 'used', total, 'allowed', allowed)::text,
      hint = 'What was replaced or deleted counts until tensorage_sweep has answered 0.';
  end if;
end
$$;

-- Raises if a new array of the caller under this key would be one too many. For arrays that come in several requests: the
-- commit looks again.
create or replace function tensorage.check_room_for_array(key text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  total bigint;
begin
  if tensorage.array_quota_of(auth.uid()) is not null then
    select u.arrays into total from tensorage.usage u where u.user_id = auth.uid();
    if not exists (select from public.datasets d
                    where d.user_id = auth.uid() and d.key = check_room_for_array.key and d.state = 'committed') then
      perform tensorage.check_arrays(auth.uid(), coalesce(total, 0) + 1, 1);
    end if;
  end if;
end
$$;

-- Triggers -----------------------------------------------------------------------------------------

-- Each notes what a row of its table adds or takes away. Several functions of one shape, and not one for all tables: to ask for
-- the table first took the server 8 % more time for an array stored and removed, since PL/pgSQL prepares each expression anew
-- in each transaction. Sizes are computed from fields, not from whole rows: to pass a row to a function, PostgreSQL would
-- fetch its elements from TOAST.

create or replace function tensorage.count_block() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'UPDATE' and new.user_id = old.user_id then
    -- The difference alone: of a block that grows, the reservation pays for the growth.
    perform tensorage.move(new.user_id, new.data_id, octet_length(new.tensor) - octet_length(old.tensor));
    return null;
  end if;
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.user_id, old.data_id, -tensorage.row_bytes() - octet_length(old.tensor));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.user_id, new.data_id, tensorage.row_bytes() + octet_length(new.tensor));
  end if;
  return null;
end
$$;

create or replace function tensorage.count_shard() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.user_id, old.data_id,
                           -tensorage.shard_bytes(old.name, old.index, old.tail, old.loose, old.filled, old.based_on));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.user_id, new.data_id,
                           tensorage.shard_bytes(new.name, new.index, new.tail, new.loose, new.filled, new.based_on));
  end if;
  return null;
end
$$;

create or replace function tensorage.count_entry() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.user_id, 0, -tensorage.entry_bytes(old.key, old.dtype, old.attrs, old.dims, old.fill, old.zarr));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.user_id, 0, tensorage.entry_bytes(new.key, new.dtype, new.attrs, new.dims, new.fill, new.zarr));
  end if;
  return null;
end
$$;

create or replace function tensorage.count_answer() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.owner, 0, -tensorage.row_bytes() - octet_length(old.answer::text));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.owner, 0, tensorage.row_bytes() + octet_length(new.answer::text));
  end if;
  return null;
end
$$;

create or replace function tensorage.count_array() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' and old.state = 'committed' then
    perform tensorage.move(old.user_id, -1, -1);
  end if;
  if tg_op <> 'DELETE' and new.state = 'committed' then
    perform tensorage.move(new.user_id, -1, 1);
  end if;
  return null;
end
$$;

create or replace function tensorage.count_share() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.user_id, 0, -tensorage.share_bytes(old.pattern, old.reader));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.user_id, 0, tensorage.share_bytes(new.pattern, new.reader));
  end if;
  return null;
end
$$;

create or replace function tensorage.count_record() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'INSERT' then
    perform tensorage.move(new.user_id, 0, tensorage.record_bytes(new.key, new.detail));
  else
    perform tensorage.move(old.user_id, 0, -tensorage.record_bytes(old.key, old.detail));
  end if;
  return null;
end
$$;

-- Not for updates: whoever uses a reservation moves its bytes from there to what is stored.
create or replace function tensorage.count_reservation() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'INSERT' then
    perform tensorage.move(new.user_id, 0, new.bytes);
  else
    perform tensorage.move(old.user_id, 0, -old.bytes);
  end if;
  return null;
end
$$;

-- Settles moves of whoever changes the tables past the functions: Storage, cascades, the service role. Refuses none.
create or replace function tensorage.settle_at_end() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform tensorage.settle(must_fit => false);
  return null;
end
$$;

create or replace trigger tensorage_count after insert or delete on public.tensors
  for each row execute function tensorage.count_block();
-- Blocks that only go to another array are not counted again.
create or replace trigger tensorage_recount after update on public.tensors for each row
  when (octet_length(old.tensor) <> octet_length(new.tensor) or old.user_id <> new.user_id)
  execute function tensorage.count_block();
create or replace trigger tensorage_count after insert or delete on public.shards
  for each row execute function tensorage.count_shard();
create or replace trigger tensorage_recount after update on public.shards for each row
  when (octet_length(old.index) <> octet_length(new.index) or old.user_id <> new.user_id
        or octet_length(old.tail) is distinct from octet_length(new.tail)
        or octet_length(old.loose) is distinct from octet_length(new.loose)
        or old.name is distinct from new.name or old.filled is distinct from new.filled
        or old.based_on is distinct from new.based_on)
  execute function tensorage.count_shard();
-- Not on updates of the columns that change most often: an append need not look at a long text of attributes.
create or replace trigger tensorage_count after insert or delete or update of user_id, key, attrs, dims, fill, zarr on public.datasets
  for each row execute function tensorage.count_entry();
-- A trigger for each event, since each has its condition. Most changes of an entry are none of the number of arrays.
create or replace trigger tensorage_count_new_array after insert on public.datasets
  for each row when (new.state = 'committed') execute function tensorage.count_array();
create or replace trigger tensorage_count_array after update of state, user_id on public.datasets
  for each row when (old.state <> new.state or old.user_id <> new.user_id) execute function tensorage.count_array();
create or replace trigger tensorage_count_gone_array after delete on public.datasets
  for each row when (old.state = 'committed') execute function tensorage.count_array();
create or replace trigger tensorage_count after insert or update or delete on tensorage.shares
  for each row execute function tensorage.count_share();
create or replace trigger tensorage_count after insert or delete on tensorage.audit
  for each row execute function tensorage.count_record();
create or replace trigger tensorage_count after insert or update or delete on tensorage.operations
  for each row execute function tensorage.count_answer();
create or replace trigger tensorage_count after insert or delete on tensorage.reservations
  for each row execute function tensorage.count_reservation();

do $$
declare
  counted regclass;
begin
  -- Including Storage's table, whose rows the file on Storage counts.
  foreach counted in array array['public.tensors', 'public.shards', 'public.datasets', 'tensorage.operations',
                                 'tensorage.reservations', 'tensorage.shares', 'tensorage.audit', 'storage.objects']::regclass[] loop
    -- Made once: a constraint trigger cannot be replaced, and only its owner may drop one of storage.objects.
    if not exists (select from pg_trigger t where t.tgrelid = counted and t.tgname = 'tensorage_settle') then
      execute format('create constraint trigger tensorage_settle after insert or update or delete on %s '
                     'deferrable initially deferred for each row execute function tensorage.settle_at_end()', counted);
    end if;
  end loop;
end
$$;

-- Counting anew ------------------------------------------------------------------------------------

-- The bytes that a user has stored and reserved, added up from all rows.
create or replace function tensorage.count_usage(user_id uuid) returns numeric
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((select sum(tensorage.row_bytes() + octet_length(t.tensor)::numeric)
                     from public.datasets d join public.tensors t on t.data_id = d.id
                    where d.user_id = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.shard_bytes(s.name, s.index, s.tail, s.loose, s.filled, s.based_on)::numeric)
                     from public.datasets d join public.shards s on s.data_id = d.id
                    where d.user_id = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.entry_bytes(d.key, d.dtype, d.attrs, d.dims, d.fill, d.zarr)::numeric)
                     from public.datasets d where d.user_id = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.row_bytes() + octet_length(o.answer::text)::numeric)
                     from tensorage.operations o where o.owner = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.share_bytes(s.pattern, s.reader)::numeric)
                     from tensorage.shares s where s.user_id = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.record_bytes(a.key, a.detail)::numeric)
                     from tensorage.audit a where a.user_id = count_usage.user_id), 0)
       + coalesce((select sum(r.bytes) from tensorage.reservations r where r.user_id = count_usage.user_id), 0)
       -- Storage's own index of prefixes answers this; '0' comes right after '/'.
       + coalesce((select sum(tensorage.object_bytes(o.name, o.metadata, o.user_metadata)::numeric) from storage.objects o
                    where o.bucket_id = 'tensors' and o.name ~>=~ (count_usage.user_id || '/')
                      and o.name ~<~ (count_usage.user_id || '0')), 0)
$$;

-- The bytes of a user's files.
create or replace function tensorage.count_file_bytes(user_id uuid) returns numeric
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(sum(tensorage.object_bytes(o.name, o.metadata, o.user_metadata)::numeric), 0) from storage.objects o
   where o.bucket_id = 'tensors' and o.name ~>=~ (count_file_bytes.user_id || '/') and o.name ~<~ (count_file_bytes.user_id || '0')
     and tensorage.folder_of_array(o.name) is null
$$;

-- Sets a user's totals to what is there, whatever they were, and returns the bytes. For administrators.
create or replace function tensorage.recount(user_id uuid) returns numeric
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  total numeric;
begin
  insert into tensorage.usage (user_id)
    select u.id from auth.users u where u.id = recount.user_id on conflict on constraint usage_pkey do nothing;
  -- Transactions that have settled have committed once this lock is held. The others add their moves to the new total
  -- afterwards.
  perform from tensorage.usage u where u.user_id = recount.user_id for update;
  total := tensorage.count_usage(recount.user_id);
  update tensorage.usage u
     set bytes = total, file_bytes = tensorage.count_file_bytes(recount.user_id),
         arrays = (select count(*) from public.datasets d where d.user_id = recount.user_id and d.state = 'committed')
   where u.user_id = recount.user_id;
  return total;
end
$$;

-- Functions of the API -----------------------------------------------------------------------------

-- Returns the amounts that the caller has stored and may store. A quota that is null is none.
create or replace function public.tensorage_usage() returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  total tensorage.usage;
begin
  select * into total from tensorage.usage u where u.user_id = me;
  return json_build_object(
    'arrays', coalesce(total.arrays, 0), 'bytes', coalesce(total.bytes, 0), 'file_bytes', coalesce(total.file_bytes, 0),
    'quota_bytes', tensorage.quota_of(me), 'quota_arrays', tensorage.array_quota_of(me));
end
$$;

-- The account that somebody is called by. Raises unless there is one, and no other.
create or replace function tensorage.one_account(who text) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  accounts uuid[] := array(select u.id from auth.users u where u.id = any (tensorage.accounts(who)));
begin
  if cardinality(accounts) <> 1 then
    raise exception using errcode = 'TS006', message = format('%L names %s accounts of this project', who, cardinality(accounts)),
      hint = 'Give the confirmed address of an account, or its id.';
  end if;
  return accounts[1];
end
$$;

-- Sets the quotas of a user, or the defaults of all who have none of their own (`who` is null). Null takes a quota away: a
-- user has the default then. For the service key alone: see the file on grants.
create or replace function public.tensorage_set_quota(who text, max_bytes bigint, max_arrays bigint) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  account uuid;
begin
  if who is null then
    update tensorage.settings
       set default_quota_bytes = tensorage_set_quota.max_bytes, default_quota_arrays = tensorage_set_quota.max_arrays;
    return json_build_object('user_id', null, 'max_bytes', max_bytes, 'max_arrays', max_arrays);
  end if;
  account := tensorage.one_account(who);
  insert into tensorage.quotas as q (user_id, max_bytes, max_arrays)
    values (account, tensorage_set_quota.max_bytes, tensorage_set_quota.max_arrays)
    on conflict on constraint quotas_pkey do update set max_bytes = excluded.max_bytes, max_arrays = excluded.max_arrays;
  return json_build_object('user_id', account, 'max_bytes', max_bytes, 'max_arrays', max_arrays);
exception when check_violation then
  raise exception using errcode = 'TS006', message = format('a quota of %s bytes and %s arrays is none', max_bytes, max_arrays);
end
$$;

-- Quotas and totals: the defaults, and a page of accounts in the order of their ids, or the one that `who` names. The quota of
-- an account is null if it has none of its own. For the service key alone: see the file on grants.
-- Pages begin behind an id, and the first behind one that no account has: an index finds each.
create or replace function public.tensorage_quotas(
  who text default null, after uuid default '00000000-0000-0000-0000-000000000000', max_rows int default 1000) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  account uuid;
begin
  if who is not null then
    account := tensorage.one_account(who);
  end if;
  return (
    select json_build_object(
      'default_bytes', s.default_quota_bytes, 'default_arrays', s.default_quota_arrays,
      'users', (
        select coalesce(json_agg(json_build_object(
                 'user_id', a.id, 'address', tensorage.address_of(a.id),
                 'arrays', coalesce(t.arrays, 0), 'bytes', coalesce(t.bytes, 0), 'file_bytes', coalesce(t.file_bytes, 0),
                 'own_bytes', q.max_bytes, 'own_arrays', q.max_arrays) order by a.id), '[]')
          from (select u.id from auth.users u
                 where u.id > after and (account is null or u.id = account)
                 order by u.id limit least(max_rows, 1000)) a
               left join tensorage.usage t on t.user_id = a.id left join tensorage.quotas q on q.user_id = a.id))
      from tensorage.settings s);
end
$$;
