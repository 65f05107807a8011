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

-- Whether the name of an object leads nowhere else as part of a URL: it has no empty part, and none of dots alone.
create or replace function tensorage.is_plain_name(object_name text) returns boolean
language sql immutable as $$
  select object_name !~ '(^|/)\.{0,2}(/|$)' and object_name !~ '[[:cntrl:]\\?#%]'
$$;
alter table public.shards
  drop constraint if exists objects_have_plain_names,
  add constraint objects_have_plain_names check (tensorage.is_plain_name(name)),
  drop constraint if exists based_on_is_a_name,
  add constraint based_on_is_a_name check (octet_length(based_on) <= 1024);

alter table public.shards enable row level security;
drop policy if exists "shards of own and shared datasets are visible" on public.shards;
create policy "shards of own and shared datasets are visible" on public.shards for select to authenticated
  using ((select tensorage.is_user()) and (
    user_id = (select auth.uid())
    -- Only reached for the shards of somebody else. "offset 0" has each of them looked up: for a page of them,
    -- PostgreSQL would rather read all datasets that are shared in the project.
    or exists (select from public.datasets d where d.id = data_id and d.is_shared and d.state = 'committed' offset 0)
  ));
revoke all on public.shards from public, anon, authenticated;
grant select on public.shards to authenticated;
grant select, insert, update, delete on public.shards to service_role;

-- The bucket ----------------------------------------------------------------------------------------

-- Folders that are named by a number hold arrays, all others files.
create or replace function tensorage.folder_of_array(object_name text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when f.parts[2] ~ '^[0-9]+$' and cardinality(f.parts) > 2 then f.parts[2] end
    from (select string_to_array(object_name, '/') as parts) f
$$;

-- Whether an object may be made or written over: a file always, one of an array while that is being written. Nothing
-- that a request does late, or somebody by hand, changes an array that can be read.
-- Raises TS005 where the user has no room at all; an object that is larger than the room is refused when it is there.
create or replace function tensorage.may_write_object(object_name text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  folder text := tensorage.folder_of_array(object_name);
begin
  if not tensorage.is_user() then
    return false;
  elsif folder is null then
    perform tensorage.check_room(auth.uid());
    return true;
  elsif folder !~ '^[1-9][0-9]{0,17}$' then
    return false;
  end if;
  -- By the number alone: no other index answers that.
  return coalesce((
    select d.user_id = (select auth.uid()) and d.engine = 'storage' and d.state = 'staged' and d.expires_at > now()
      from public.datasets d where d.id = folder::bigint), false);
end
$$;

-- Whether an object may be deleted: unless it is part of an array.
create or replace function tensorage.may_delete_object(object_name text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  -- A subquery in the other, each by a unique index: a join may be planned otherwise, and kept so.
  select not coalesce((
    select d.state = 'committed' or d.expires_at > now() from public.datasets d
     where d.id = (select s.data_id from public.shards s where s.name = object_name)), false)
$$;

-- Whether an object is part of an array that is shared with every signed-in user.
create or replace function tensorage.is_shared_object(object_name text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((
    select d.is_shared and d.state = 'committed' from public.datasets d
     where d.id = (select s.data_id from public.shards s where s.name = object_name)), false)
$$;

drop policy if exists "tensorage: read arrays that are shared" on storage.objects;
create policy "tensorage: read arrays that are shared" on storage.objects for select to authenticated
  using (bucket_id = 'tensors' and (select tensorage.is_user()) and tensorage.is_shared_object(name));

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
         and (select tensorage.is_user()) and tensorage.may_delete_object(name));

-- Usage ---------------------------------------------------------------------------------------------
--
-- A quota counts what is stored: blocks and shards with their rows, entries of the catalogue with their attributes,
-- answers that are kept, and objects and files by the size that Storage says they have. tensorage.usage has one total a
-- user. Triggers note what each row adds or takes away (tensorage.move), and the transaction adds their sum to the total as
-- the last thing that it does (tensorage.settle): nobody who holds the lock of a total waits for anything else.

create table if not exists tensorage.usage (
  user_id uuid primary key references auth.users on delete cascade,
  bytes numeric not null default 0
) with (fillfactor = 50);
comment on table tensorage.usage is 'Bytes that count against a user''s quota: what is stored and what is reserved.';

-- Room for what was declared and has not come yet. What is stored of a dataset uses up its reservation first.
create table if not exists tensorage.reservations (
  data_id bigint primary key references public.datasets on delete cascade,
  user_id uuid not null,
  bytes numeric not null check (bytes >= 0)
) with (fillfactor = 50);
create index if not exists reservations_user on tensorage.reservations (user_id);

alter table tensorage.usage enable row level security;
alter table tensorage.reservations enable row level security;
revoke all on tensorage.usage, tensorage.reservations from public, anon, authenticated;
grant select on tensorage.usage, tensorage.reservations to service_role;

-- Bytes of a row beside its values: its header, its place in the page and in the index. Like the other functions of sizes,
-- it has no search_path of its own, so that its text is put in place of each call.
create or replace function tensorage.row_bytes() returns int
language sql immutable as $$ select 128 $$;

-- Bytes of an object of Storage: its size, and Storage's row of it, whose name stands in two columns and two indexes. An
-- object without bytes takes room, too, and its sender may say up to a mebibyte of it. Of one whose upload is only being
-- tried, the row.
create or replace function tensorage.object_bytes(name text, metadata jsonb, user_metadata jsonb) returns bigint
language sql immutable as $$
  select case when metadata ->> 'size' ~ '^[0-9]{1,18}$' then (metadata ->> 'size')::bigint else 0 end
         + 4 * (tensorage.row_bytes() + octet_length(name))
         + coalesce(octet_length(metadata::text), 0) + coalesce(octet_length(user_metadata::text), 0)
$$;

-- Notes that a row of a dataset (0: of none) adds bytes to what a user has stored, or takes them away.
create or replace function tensorage.move(user_id uuid, data_id bigint, bytes numeric) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  -- A setting of the transaction: rolled back with it, and with each savepoint. Apart for a dataset only where that has
  -- room reserved: it stays short when rows of a hundred thousand datasets go.
  moves jsonb := coalesce(nullif(current_setting('tensorage.moves', true), ''), '{}');
  name text := move.user_id || '/' || case
    when move.bytes > 0 and exists (select from tensorage.reservations r where r.data_id = move.data_id)
    then move.data_id else 0 end;
begin
  perform set_config(
    'tensorage.moves', (moves || jsonb_build_object(name, coalesce((moves ->> name)::numeric, 0) + move.bytes))::text, true);
end
$$;

-- The bytes that a user may store, or null.
create or replace function tensorage.quota_of(user_id uuid) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((select q.max_bytes from tensorage.quotas q where q.user_id = quota_of.user_id),
                  (select s.default_quota_bytes from tensorage.settings s))
$$;

-- Takes bytes that have come from what is reserved for their dataset: how many of them.
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

create or replace function tensorage.add_to_total(user_id uuid, bytes numeric, must_fit boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  total numeric;
  allowed bigint;
begin
  if bytes = 0 then
    return;
  end if;
  update tensorage.usage u set bytes = u.bytes + add_to_total.bytes where u.user_id = add_to_total.user_id
  returning u.bytes into total;
  if not found then
    -- Nobody's, if the user is just being deleted.
    insert into tensorage.usage as u (user_id, bytes)
      select a.id, add_to_total.bytes from auth.users a where a.id = add_to_total.user_id
      on conflict on constraint usage_pkey do update set bytes = u.bytes + excluded.bytes
    returning u.bytes into total;
  end if;
  if must_fit and bytes > 0 then
    allowed := tensorage.quota_of(user_id);
    if total > allowed then
      raise exception using errcode = 'TS005',
        message = format('%s more bytes do not fit: %s of %s bytes are in use', bytes, total - bytes, allowed),
        detail = json_build_object('asked', bytes, 'used', total - bytes, 'allowed', allowed)::text,
        hint = 'What was replaced or deleted counts until tensorage_sweep has answered 0.';
    end if;
  end if;
end
$$;

-- Adds what this transaction has moved to the totals of its users, and (unless it only makes room) refuses what does not
-- fit. An update of one row: of two writers at once, the second sees the total that the first one has left.
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
  -- Each in one order for all: reservations, then totals.
  for m in
    select split_part(e.key, '/', 1) as user_id, split_part(e.key, '/', 2)::bigint as data_id, e.value::numeric as bytes
      from jsonb_each_text(moves) e order by 2, 1
  loop
    totals := totals || jsonb_build_object(
      m.user_id, coalesce((totals ->> m.user_id)::numeric, 0) + m.bytes - tensorage.use_reservation(m.data_id, m.bytes));
  end loop;
  for m in select t.key::uuid as user_id, t.value::numeric as bytes from jsonb_each_text(totals) t order by 1 loop
    perform tensorage.add_to_total(m.user_id, m.bytes, must_fit);
  end loop;
end
$$;

-- Raises where a user's total has reached the quota. For uploads, whose size nobody knows before they are there.
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

create or replace function tensorage.count_block() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'UPDATE' and new.user_id = old.user_id then
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

-- Bytes of a shard's row. Its object is counted with the other objects.
create or replace function tensorage.shard_bytes(name text, index bytea, filled int8multirange, based_on text) returns int
language sql immutable as $$
  select tensorage.row_bytes() + coalesce(octet_length(name), 0) + octet_length(index)
         + coalesce(octet_length(filled::text), 0) + coalesce(octet_length(based_on), 0)
$$;

create or replace function tensorage.count_shard() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.user_id, old.data_id,
                           -tensorage.shard_bytes(old.name, old.index, old.filled, old.based_on));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.user_id, new.data_id, tensorage.shard_bytes(new.name, new.index, new.filled, new.based_on));
  end if;
  return null;
end
$$;

-- Bytes of an entry of the catalogue: four rows' worth for its many short columns and indexes, and the text of the long
-- ones. Not by pg_column_size(), which tells what is stored from what is about to be.
create or replace function tensorage.entry_bytes(key text, attrs jsonb, dims text[], zarr json) returns int
language sql immutable as $$
  select 4 * tensorage.row_bytes() + octet_length(key) + octet_length(attrs::text) + coalesce(octet_length(dims::text), 0)
         + coalesce(octet_length(zarr::text), 0)
$$;

create or replace function tensorage.count_entry() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.user_id, 0, -tensorage.entry_bytes(old.key, old.attrs, old.dims, old.zarr));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.user_id, 0, tensorage.entry_bytes(new.key, new.attrs, new.dims, new.zarr));
  end if;
  return null;
end
$$;

create or replace function tensorage.count_answer() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    perform tensorage.move(old.user_id, 0, -tensorage.row_bytes() - octet_length(old.answer::text));
  end if;
  if tg_op <> 'DELETE' then
    perform tensorage.move(new.user_id, 0, tensorage.row_bytes() + octet_length(new.answer::text));
  end if;
  return null;
end
$$;

-- An update is none: whoever uses a reservation moves its bytes from there to what is stored.
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

-- The user whose folder an object of the bucket is in, or null.
create or replace function tensorage.owner_of_object(object_name text) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when object_name ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/' then left(object_name, 36)::uuid end
$$;

create or replace function tensorage.move_object(object_name text, bytes bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  owner uuid := tensorage.owner_of_object(object_name);
  folder text := tensorage.folder_of_array(object_name);
begin
  if owner is not null and bytes <> 0 then
    perform tensorage.move(owner, case when folder ~ '^[1-9][0-9]{0,17}$' then folder::bigint else 0 end, bytes);
  end if;
end
$$;

-- Storage has a transaction of its own for each upload, which waits for nothing after this: what grows is settled at once,
-- so that an object that does not fit is refused. What goes, perhaps a thousand at a time, is settled at the end.
create or replace function tensorage.count_object() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before bigint := 0;
  after bigint := 0;
begin
  if tg_op <> 'INSERT' then
    if old.bucket_id = 'tensors' then
      before := tensorage.object_bytes(old.name, old.metadata, old.user_metadata);
      perform tensorage.move_object(old.name, -before);
    end if;
  end if;
  if tg_op <> 'DELETE' then
    if new.bucket_id = 'tensors' then
      after := tensorage.object_bytes(new.name, new.metadata, new.user_metadata);
      perform tensorage.move_object(new.name, after);
    end if;
  end if;
  if after > before then
    perform tensorage.settle();
  end if;
  return null;
end
$$;

-- For whoever changes the tables past the functions: Storage, cascades, the service role. None of these is refused.
create or replace function tensorage.settle_at_end() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform tensorage.settle(must_fit => false);
  return null;
end
$$;

create or replace trigger tensorage_count after insert or delete on public.tensors
  for each row execute function tensorage.count_block();
-- Blocks that only go to another array are looked at by nobody.
create or replace trigger tensorage_recount after update on public.tensors for each row
  when (octet_length(old.tensor) <> octet_length(new.tensor) or old.user_id <> new.user_id)
  execute function tensorage.count_block();
create or replace trigger tensorage_count after insert or delete on public.shards
  for each row execute function tensorage.count_shard();
create or replace trigger tensorage_recount after update on public.shards for each row
  when (octet_length(old.index) <> octet_length(new.index) or old.user_id <> new.user_id
        or old.name is distinct from new.name or old.filled is distinct from new.filled
        or old.based_on is distinct from new.based_on)
  execute function tensorage.count_shard();
-- Not of the columns that most changes are made to: a long text need not be looked at for each append.
create or replace trigger tensorage_count after insert or delete or update of user_id, key, attrs, dims, zarr on public.datasets
  for each row execute function tensorage.count_entry();
create or replace trigger tensorage_count after insert or update or delete on tensorage.operations
  for each row execute function tensorage.count_answer();
create or replace trigger tensorage_count after insert or delete on tensorage.reservations
  for each row execute function tensorage.count_reservation();
create or replace trigger tensorage_count
  after insert or delete or update of bucket_id, name, metadata, user_metadata on storage.objects for each row execute function tensorage.count_object();

do $$
declare
  counted regclass;
begin
  foreach counted in array array['public.tensors', 'public.shards', 'public.datasets', 'tensorage.operations',
                                 'tensorage.reservations', 'storage.objects']::regclass[] loop
    -- It cannot be replaced, and only its owner may drop one of storage.objects.
    if not exists (select from pg_trigger t where t.tgrelid = counted and t.tgname = 'tensorage_settle') then
      execute format('create constraint trigger tensorage_settle after insert or update or delete on %s '
                     'deferrable initially deferred for each row execute function tensorage.settle_at_end()', counted);
    end if;
  end loop;
end
$$;

-- The bytes that a user has stored and reserved, added up from all there is.
create or replace function tensorage.count_usage(user_id uuid) returns numeric
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((select sum(tensorage.row_bytes() + octet_length(t.tensor)::numeric)
                     from public.datasets d join public.tensors t on t.data_id = d.id
                    where d.user_id = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.shard_bytes(s.name, s.index, s.filled, s.based_on)::numeric)
                     from public.datasets d join public.shards s on s.data_id = d.id
                    where d.user_id = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.entry_bytes(d.key, d.attrs, d.dims, d.zarr)::numeric)
                     from public.datasets d where d.user_id = count_usage.user_id), 0)
       + coalesce((select sum(tensorage.row_bytes() + octet_length(o.answer::text)::numeric)
                     from tensorage.operations o where o.user_id = count_usage.user_id), 0)
       + coalesce((select sum(r.bytes) from tensorage.reservations r where r.user_id = count_usage.user_id), 0)
       -- By Storage's own index of prefixes; '0' comes right after '/'.
       + coalesce((select sum(tensorage.object_bytes(o.name, o.metadata, o.user_metadata)::numeric) from storage.objects o
                    where o.bucket_id = 'tensors' and o.name ~>=~ (count_usage.user_id || '/')
                      and o.name ~<~ (count_usage.user_id || '0')), 0)
$$;

-- Sets a user's total to what is there, whatever it was: what it is now.
create or replace function tensorage.recount(user_id uuid) returns numeric
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  total numeric;
begin
  insert into tensorage.usage (user_id)
    select u.id from auth.users u where u.id = recount.user_id on conflict on constraint usage_pkey do nothing;
  -- Whoever has settled has committed when this lock is had; whoever has not yet will add to what is counted here.
  perform from tensorage.usage u where u.user_id = recount.user_id for update;
  total := tensorage.count_usage(recount.user_id);
  update tensorage.usage u set bytes = total where u.user_id = recount.user_id;
  return total;
end
$$;

-- Datasets that are being written ----------------------------------------------------------------------

-- Puts into staged datasets do not wait for the disk, so that a crash of PostgreSQL may lose some that were answered. Its
-- coming back is told by this table: being unlogged, it is empty then. A dataset without a row here is written no further,
-- and is never committed. Every function that adds to a staged dataset, and each commit, asks tensorage.check_uncrashed.
do $$
begin
  if to_regclass('tensorage.stagings') is null then
    create unlogged table tensorage.stagings (data_id bigint primary key references public.datasets on delete cascade);
    insert into tensorage.stagings select d.id from public.datasets d where d.state = 'staged';
  end if;
end
$$;
comment on table tensorage.stagings is 'Datasets that are being written since the last crash. Unlogged on purpose.';
alter table tensorage.stagings enable row level security;
revoke all on tensorage.stagings from public, anon, authenticated;
grant select on tensorage.stagings to service_role;

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
create or replace function tensorage.begin_staging(d public.datasets, bytes numeric) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into tensorage.stagings (data_id) values (d.id);
  insert into tensorage.reservations (data_id, user_id, bytes) values (d.id, d.user_id, begin_staging.bytes)
$$;

-- Gives back the room that a dataset needs no longer, and has it written no further.
create or replace function tensorage.end_staging(id bigint) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  delete from tensorage.stagings s where s.data_id = end_staging.id;
  delete from tensorage.reservations r where r.data_id = end_staging.id
$$;

-- The caller's dataset that an operation has begun before. One that was begun before a crash is given up: whoever begins
-- again has put nothing into it, or means to put it there again.
create or replace function tensorage.begun(operation uuid) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  select * into d from public.datasets s where s.operation = begun.operation and s.user_id = tensorage.me();
  if d.state = 'staged' and not exists (select from tensorage.stagings s where s.data_id = d.id) then
    update public.datasets s set operation = null, expires_at = '-infinity' where s.id = d.id and s.state = 'staged';
    perform tensorage.end_staging(d.id);
    return null;
  end if;
  return d;
end
$$;

-- Inner functions: describing, staging, sweeping --------------------------------------------------------

create or replace function tensorage.describe(d public.datasets) returns json
language sql stable set search_path = pg_catalog, pg_temp as $$
  select json_build_object(
    'id', d.id, 'user_id', d.user_id, 'owner', tensorage.address_of(d.user_id), 'key', d.key, 'shape', d.shape, 'dtype', d.dtype,
    'chunk', d.chunk, 'engine', d.engine, 'is_shared', d.is_shared, 'attrs', d.attrs, 'dims', d.dims,
    'state', d.state, 'version', d.version, 'created_at', d.created_at, 'updated_at', d.updated_at,
    -- As text: on its way through jsonb, a number could change.
    'zarr', d.zarr::text)
$$;

-- Without attributes, dims and metadata, which are looked up again: a million appends would keep a million copies.
create or replace function tensorage.answered(operation uuid) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if operation is null then
    return null;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(format('tensorage operation %s of %s', operation, tensorage.me()), 0));
  return (select o.answer::jsonb || coalesce(
                   (select jsonb_build_object('attrs', d.attrs, 'dims', d.dims, 'zarr', d.zarr::text) from public.datasets d
                     where o.answer -> 'attrs' is not null and d.id = (o.answer ->> 'id')::bigint), '{}')
            from tensorage.operations o where o.id = operation and o.user_id = auth.uid());
end
$$;

-- Keeps an operation's answer, and settles what it stored. Whoever makes room may keep an answer, too: then it need not fit.
drop function if exists tensorage.answer(uuid, json);
create or replace function tensorage.answer(operation uuid, answer json, must_fit boolean default true) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if operation is not null then
    insert into tensorage.operations (id, user_id, answer)
      values (operation, auth.uid(),
              case when answer -> 'attrs' is null then answer
                   else (answer::jsonb || '{"attrs": {}, "dims": null, "zarr": null}')::json end);
    -- Two for the one: appends sweep nothing, and whoever does nothing else would keep all answers for ever.
    perform tensorage.forget(2);
  end if;
  perform tensorage.settle(must_fit);
  return answer;
end
$$;

-- Deletes blocks of the caller's expired datasets of the database, at most max_blocks of them: how many such datasets
-- are left. Waits for nobody: those who write what is to be swept may be waiting for the array that this transaction
-- replaces.
create or replace function tensorage.sweep(max_blocks int) returns int
language plpgsql set search_path = pg_catalog, pg_temp
-- Whether a block is left is not to be found out by reading all blocks of all arrays, which are large on the average.
set enable_seqscan = off as $$
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
    perform tensorage.end_staging(victim);
    delete from public.tensors t where t.data_id = victim and t.index in (
      select v.index from public.tensors v where v.data_id = victim order by v.index limit room);
    get diagnostics deleted = row_count;
    room := room - greatest(deleted, 1);
    if not exists (select from public.tensors t where t.data_id = victim) then
      perform tensorage.delete_swept(victim);
    end if;
  end loop;
  -- Objects are for the client to delete; what is reserved for them is not needed any more.
  perform tensorage.end_staging(e.id) from (
    select d.id from tensorage.reservations r join public.datasets d on d.id = r.data_id
     where r.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now() and d.engine = 'storage'
     limit 64 for update of d skip locked) e;
  -- A piece at a time, here too: whoever appended a million times yesterday need not wait for it today.
  perform tensorage.forget(256);
  return (select count(*) from public.datasets d
           where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now() and d.engine = 'database');
end
$$;

-- Gives up the staged appends and assignments of an array that is to be swept, but for those that are being committed.
create or replace function tensorage.give_up(victim bigint) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  with given_up as (
    update public.datasets s set append_to = null, assign_to = null, expires_at = '-infinity'
     where s.id = any (array(select w.id from public.datasets w
                              where w.append_to = victim or w.assign_to = victim for update skip locked))
    returning s.id)
  select tensorage.end_staging(g.id) from given_up g
$$;

-- Deletes a dataset that nothing is left of. Cascading to the staged appends and assignments of an array would delete
-- all that these hold at once: they are given up, and swept on their own.
create or replace function tensorage.delete_swept(victim bigint) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select tensorage.give_up(victim);
  delete from public.datasets d where d.id = victim and not exists (
    select from public.datasets w where w.append_to = victim or w.assign_to = victim)
$$;

-- Whether the caller has datasets whose objects are to be deleted: 1 or 0.
create or replace function tensorage.objects_left() returns int
language sql stable set search_path = pg_catalog, pg_temp as $$
  select count(*)::int from (
    select from public.datasets d
     where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now() and d.engine = 'storage' limit 1) x
$$;

-- What a writer is told: the dataset, how many datasets (such as the one it replaced) are left to sweep, and whether
-- there are objects to delete.
create or replace function tensorage.describe_and_sweep(d public.datasets) returns json
language sql set search_path = pg_catalog, pg_temp as $$
  select (tensorage.describe(d)::jsonb
          || jsonb_build_object('left', tensorage.sweep(64), 'objects_left', tensorage.objects_left()))::json
$$;

drop function if exists tensorage.check_append(public.datasets, text, bigint[], text);
create or replace function tensorage.check_append(
  target public.datasets, key text, shape bigint[], dtype text, engine text default 'database') returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
  target public.datasets;
  asked_shape bigint[] := array(select json_array_elements_text(asked -> 'shape')::bigint);
begin
  if exists (select from json_each(asked) m
              where m.key in ('append', 'overwrite', 'is_shared') and json_typeof(m.value) not in ('boolean', 'null')) then
    raise exception using errcode = 'TS006', message = 'append, overwrite and is_shared are true or false, and nothing else';
  end if;
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
      user_id, owner, key, shape, dtype, chunk, engine, zarr, is_shared, attrs, dims, overwrite, operation, append_to, expires_at)
    values (
      tensorage.me(), tensorage.address_of(tensorage.me()), asked ->> 'key', asked_shape, asked ->> 'dtype', (asked ->> 'chunk')::int,
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
  perform tensorage.begin_staging(d, tensorage.bytes_to_reserve(d));
  return d;
end
$$;

-- Bytes that a dataset takes at the most if it is written as declared, in blocks of its chunk; objects are mostly smaller.
-- 1024 are for the answers of what is done to it.
create or replace function tensorage.bytes_to_reserve(d public.datasets) returns numeric
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select 1024 + d.nbytes + case d.engine when 'database' then
    tensorage.row_bytes() * ceil(d.nbytes / d.itemsize / d.chunk) else 0 end
$$;

-- Metadata of Zarr that a request names, if the shape of a shard can be taken from them.
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

-- Inner functions: shards -----------------------------------------------------------------------------

-- Shards along each axis, of an array of this shape.
create or replace function tensorage.shard_grid(zarr json, shape bigint[]) returns bigint[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
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
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
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

-- The rows of axis 0 that a shard of d holds, as far as the array extends. All of it without axes.
create or replace function tensorage.rows_of_shard(d public.datasets, number bigint) returns int8range
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
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

-- Whether this is the name of an object in the folder of a dataset.
create or replace function tensorage.is_object_of(d public.datasets, object_name text) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select starts_with(object_name, d.user_id || '/' || d.id || '/') and tensorage.is_plain_name(object_name)
$$;

-- Puts shards into a staged dataset. Each of them says its number, name, nbytes and index (base64); of a part of a
-- shard, the rows of the array that are in it now, and the name that it had before; and of what it takes the place of,
-- based_on. Sent twice, they are there once.
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
      as s(number bigint, name text, nbytes bigint, index text, low bigint, high bigint, before text, based_on text)
  loop
    if s.name is not null and not tensorage.is_object_of(d, s.name) then
      raise exception using errcode = 'TS006',
        message = format('%L is no name of an object of dataset %s', left(s.name, 200), d.id);
    elsif s.based_on is not null and d.append_to is null and d.assign_to is null then
      raise exception using errcode = 'TS006', message = format('shard %s of a new array takes the place of none', s.number);
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
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  target public.datasets;
  replaced bigint;
begin
  select * into target from public.datasets t
   where t.id = coalesce(d.append_to, d.assign_to) and t.state = 'committed' for update;
  if target.id is null or target.shape[1] <> d.base_rows or exists (
       select from public.shards s
        where s.data_id = d.id and s.based_on is distinct from (
          select coalesce(t.name, '') from public.shards t where t.data_id = target.id and t.number = s.number)) then
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
     where t.data_id = target.id
       and t.number = any (array(select s.number from public.shards s where s.data_id = d.id));
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
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  -- Staged rows need not be on disk before their commit, which waits for all that was written before it, too. This leans
  -- on one thing: no dataset is committed that was begun before a crash. tensorage.check_uncrashed sees to it.
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
  perform tensorage.check_uncrashed(d);
  return tensorage.of_engine(d, engine);
end
$$;

-- Functions of the REST API -----------------------------------------------------------------------------

create or replace function public.tensorage_version() returns int
language sql stable set search_path = pg_catalog, pg_temp as $$ select 3 $$;

-- Declares an array that comes in several requests: a staged dataset, to be filled by tensorage_put, or by objects and
-- tensorage_put_shards.
drop function if exists public.tensorage_begin(text, bigint[], text, int, text, boolean, jsonb, text[], boolean, boolean, uuid);
create or replace function public.tensorage_begin(
  key text, shape bigint[], dtype text, chunk int, engine text default 'database', is_shared boolean default false,
  attrs jsonb default '{}', dims text[] default null, overwrite boolean default false, append boolean default false,
  operation uuid default null, zarr text default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  d := tensorage.begun(operation);
  if d.id is null then
    d := tensorage.stage(json_build_object(
      'key', key, 'shape', shape, 'dtype', dtype, 'chunk', chunk, 'engine', engine, 'is_shared', is_shared,
      'attrs', attrs, 'dims', dims, 'overwrite', overwrite, 'append', append, 'operation', operation, 'zarr', zarr));
  end if;
  perform tensorage.settle();
  return tensorage.describe(d);
end
$$;

-- Begins an assignment of several requests: a staged dataset, for tensorage_patch, or for objects and
-- tensorage_put_shards. Counts in the quota as the array.
drop function if exists public.tensorage_begin_assign(bigint, bigint, uuid);
create or replace function public.tensorage_begin_assign(
  data_id bigint, version bigint, operation uuid default null, engine text default 'database') returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  target public.datasets;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  d := tensorage.begun(operation);
  if d.id is null then
    perform tensorage.sweep(64);
    target := tensorage.assignable(data_id, version, engine);
    insert into public.datasets (
        user_id, owner, key, shape, dtype, chunk, engine, zarr, operation, assign_to, assign_version, expires_at)
      values (
        target.user_id, target.owner, target.key, target.shape, target.dtype, target.chunk, target.engine, target.zarr,
        tensorage_begin_assign.operation, target.id, target.version, now() + interval '1 day')
      returning * into d;
    perform tensorage.begin_staging(d, tensorage.bytes_to_reserve(d));
  end if;
  perform tensorage.settle();
  return tensorage.describe(d);
end
$$;

-- Begins an append to an array of Storage, of rows of this shape behind its `base_rows`: a staged dataset, for objects
-- and tensorage_put_shards.
create or replace function public.tensorage_begin_append(
  data_id bigint, shape bigint[], base_rows bigint, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  target public.datasets;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  d := tensorage.begun(operation);
  if d.id is null then
    perform tensorage.sweep(64);
    -- Asked without a lock: nobody may lock somebody else's array.
    select * into target from public.datasets s where s.id = tensorage_begin_append.data_id;
    if target.user_id <> tensorage.me() and target.is_shared and target.state = 'committed' then
      raise exception using errcode = 'TS007', message = format('the array %L belongs to somebody else', target.key);
    end if;
    select * into target from public.datasets s
     where s.id = tensorage_begin_append.data_id and s.user_id = tensorage.me() for key share;
    if target.id is null or target.state <> 'committed' or target.shape[1] is distinct from base_rows then
      raise exception using errcode = 'TS003', message = 'the array to append to has changed since it was opened';
    end if;
    perform tensorage.check_append(target, target.key, shape, target.dtype, 'storage');
    insert into public.datasets (
        user_id, owner, key, shape, dtype, chunk, engine, zarr, operation, append_to, base_rows, expires_at)
      values (
        target.user_id, target.owner, target.key, tensorage_begin_append.shape, target.dtype, target.chunk, target.engine,
        target.zarr, tensorage_begin_append.operation, target.id, target.shape[1], now() + interval '1 day')
      returning * into d;
    perform tensorage.begin_staging(d, tensorage.bytes_to_reserve(d));
  end if;
  perform tensorage.settle();
  return tensorage.describe(d);
end
$$;

-- Shards of a staged dataset, whose objects are there. See tensorage.put_shards.
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

-- Makes a complete staged dataset visible in one step (or, begun as an append, the end of its array; or as an
-- assignment, a part of it). The last of its shards may come along.
drop function if exists public.tensorage_commit(bigint, uuid);
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
   where s.id = tensorage_commit.data_id and s.user_id = tensorage.me() for update;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
  elsif d.state = 'committed' then
    return tensorage.describe(d);
  elsif d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L was aborted', d.key);
  end if;
  perform tensorage.check_uncrashed(d);
  if shards is not null then
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

-- Gives up a staged dataset. How many datasets are left to sweep.
create or replace function public.tensorage_abort(data_id bigint) returns int
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update public.datasets s set expires_at = '-infinity'
   where s.id = tensorage_abort.data_id and s.user_id = tensorage.me() and s.state = 'staged';
  if found then
    perform tensorage.end_staging(data_id);
  end if;
  return tensorage.sweep(256);
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
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
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
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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
    'id', removed, 'left', tensorage.sweep(256), 'objects_left', tensorage.objects_left()), must_fit => false);
end
$$;

drop function if exists tensorage.check_quota(numeric, bigint), tensorage.lock_quota();

-- Totals of users who stored something before there were any.
select tensorage.recount(u.id) from auth.users u
 where not exists (select from tensorage.usage t where t.user_id = u.id)
   and (exists (select from public.datasets d where d.user_id = u.id)
        or exists (select from storage.objects o where o.bucket_id = 'tensors' and starts_with(o.name, u.id || '/')));

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
                                     'is_shared_object', 'is_user')) loop
    execute format('grant execute on function %s to authenticated, service_role', f);
  end loop;
end
$$;

notify pgrst, 'reload schema';
