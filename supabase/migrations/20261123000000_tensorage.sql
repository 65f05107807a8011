-- tensorage, schema version 1: datasets, their blocks, and the functions that move them.
--
-- Runs as hosted Supabase's `postgres` role (no superuser, no owner of `auth`), on PostgreSQL 15 to 18,
-- through `supabase db push`, in an SQL editor, and again on top of itself.
--
-- Who may do what:
--   * tables are read by row-level security: `authenticated` may select, the policies say what;
--   * the reading functions run as the owner of the tables (`security definer`), and each compares the owner with
--     the caller before it reads. Row-level security may keep a bound out of an index condition, since its
--     arithmetic can raise: PostgreSQL 15 then walks the whole array for each sample;
--   * writing goes through the functions below, and nothing else: no role but the owner has a grant to
--     write the tables. A user who could write the tables could store past the quota, or change a
--     committed block under a reader. So the writing functions are `security definer`, each with a
--     search_path in which no temporary type comes before PostgreSQL's (as it does in an empty one), and each begins by
--     comparing the owner with auth.uid();
--   * `anon` may do nothing.
--
-- Errors that the client tells apart carry SQLSTATEs of class TS:
--   TS001 no such array          TS002 the key is taken          TS003 changed since it was opened
--   TS004 blocks missing         TS005 over the quota            TS006 the request makes no sense
--   TS007 not the owner          TS008 several users share an array under this key

create schema if not exists tensorage;
comment on schema tensorage is 'Inner parts of tensorage: not exposed over REST.';

do $$
begin
  create domain public."application/vnd.tensorage" as bytea;
exception when duplicate_object then
  null; -- Applied before: a domain has no "if not exists".
end
$$;

-- Tables ------------------------------------------------------------------------------------------

create table if not exists public.datasets (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid() references auth.users on delete cascade,
  -- The owner's address when the array was made. It may be somebody else's by now: functions look up the present one.
  owner text,
  -- "C" makes the order of keys, and the range that a prefix stands for, the same in every project.
  key text collate "C" not null check (octet_length(key) between 1 and 1024),
  -- numpy has no more than 64 axes.
  shape bigint[] not null
    check (array_position(shape, null) is null and 0 <= all (shape) and cardinality(shape) <= 64),
  -- numpy's dtype.str, little-endian: the numbers, booleans, times and time spans.
  dtype text not null check (dtype ~ '^(\|[biu]1|<[iu][248]|<f(2|4|8|12|16)|<c(8|16|24|32)|<[mM]8(\[[0-9A-Za-z/]{1,32}\])?)$'),
  itemsize int not null generated always as (substring(dtype from '^..(\d+)')::int) stored,
  -- Elements of the largest block: the read functions look no further back than this.
  chunk int not null check (chunk > 0),
  engine text not null default 'database' check (engine in ('database', 'storage')),
  is_shared boolean not null default false,
  -- No quota counts the two: a mebibyte is the most that they hold.
  attrs jsonb not null default '{}' check (jsonb_typeof(attrs) = 'object' and octet_length(attrs::text) <= 1048576),
  dims text[] check (octet_length(array_to_string(dims, '', '')) <= 1048576),
  state text not null default 'staged' check (state in ('staged', 'committed')),
  version bigint not null default 1,
  -- The version since which no stored element has changed: appends add to a reader's array, the rest changes it.
  stable_since bigint not null default 1,
  -- Whether the commit may replace the array that is under the key.
  overwrite boolean not null default false,
  -- A staged append names the array it goes to, and the client's own id of the operation.
  append_to bigint references public.datasets on delete cascade,
  operation uuid,
  -- When a staged dataset may be swept away: -infinity when it was aborted, replaced or removed, which holds for a
  -- request that began before that, too. Null while committed.
  expires_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint dims_name_every_axis check (dims is null or cardinality(dims) = cardinality(shape)),
  constraint committed_stays check ((state = 'committed') = (expires_at is null)),
  constraint only_staged_rows_are_appended check (append_to is null or state = 'staged'),
  -- Appends merge blocks up to this size, again and again.
  constraint blocks_are_small check (chunk::bigint * itemsize <= 67108864),
  -- With the user: another user's operations are not to be met, not even as a conflict. The operation first: an index that
  -- begins with the user is taken, for want of statistics, for one of all kinds of a user's datasets.
  unique (operation, user_id)
);
create unique index if not exists datasets_committed_key on public.datasets (user_id, key) where state = 'committed';
create index if not exists datasets_shared_key on public.datasets (key, id) where state = 'committed' and is_shared;
create index if not exists datasets_staged on public.datasets (user_id, expires_at) where state = 'staged';
create index if not exists datasets_append_to on public.datasets (append_to) where append_to is not null;

create table if not exists public.tensors (
  data_id bigint not null references public.datasets on delete cascade,
  -- The dataset's owner again, so that the policy is one comparison.
  user_id uuid not null,
  -- Position of the block's first element in the flat array.
  index bigint not null check (index >= 0),
  count int not null check (count > 0),
  tensor bytea not null,
  primary key (data_id, index)
);
-- Uncompressed and out of line: substr() then reads only the pages it needs.
alter table public.tensors alter column tensor set storage external;

create table if not exists tensorage.quotas (
  user_id uuid primary key references auth.users on delete cascade,
  max_bytes bigint not null check (max_bytes >= 0)
);
comment on table tensorage.quotas is 'Bytes that a user may store. No row: tensorage.settings.default_quota_bytes.';

create table if not exists tensorage.settings (
  only_row boolean primary key default true check (only_row),
  default_quota_bytes bigint check (default_quota_bytes >= 0)
);
comment on column tensorage.settings.default_quota_bytes is 'Bytes that each user may store; null: no limit.';
insert into tensorage.settings default values on conflict do nothing;

-- What a client's operation answered, so that the same operation sent again answers the same.
create table if not exists tensorage.operations (
  user_id uuid not null references auth.users on delete cascade,
  id uuid not null,
  answer json not null,
  finished_at timestamptz not null default now(),
  primary key (user_id, id)
);
create index if not exists operations_finished on tensorage.operations (user_id, finished_at);

-- Row-level security ------------------------------------------------------------------------------

-- Whether the token is that of a user who is there: one who was deleted may have it for an hour more.
-- Security definer: nobody else may read auth.users.
create or replace function tensorage.is_user() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exists (select from auth.users u where u.id = auth.uid() and u.deleted_at is null)
$$;

alter table public.datasets enable row level security;
alter table public.tensors enable row level security;
alter table tensorage.quotas enable row level security;
alter table tensorage.settings enable row level security;
alter table tensorage.operations enable row level security;

drop policy if exists "own and shared datasets are visible" on public.datasets;
create policy "own and shared datasets are visible" on public.datasets for select to authenticated
  using ((select tensorage.is_user()) and (user_id = (select auth.uid()) or (is_shared and state = 'committed')));

drop policy if exists "blocks of own and shared datasets are visible" on public.tensors;
create policy "blocks of own and shared datasets are visible" on public.tensors for select to authenticated
  using ((select tensorage.is_user()) and (
    user_id = (select auth.uid())
    -- Only reached for the blocks of somebody else. "offset 0" has each of them looked up: all datasets that are shared
    -- in the project would be read for a single block otherwise.
    or exists (select from public.datasets d where d.id = data_id and d.is_shared and d.state = 'committed' offset 0)
  ));

revoke all on public.datasets, public.tensors from public, anon, authenticated;
revoke all on tensorage.quotas, tensorage.settings, tensorage.operations from public, anon, authenticated;
revoke all on sequence public.datasets_id_seq from public, anon, authenticated;
grant select on public.datasets, public.tensors to authenticated;
grant select, insert, update, delete on public.datasets, public.tensors to service_role;
revoke all on schema tensorage from public, anon;
grant usage on schema tensorage to authenticated, service_role;
grant select, insert, update, delete on tensorage.quotas, tensorage.settings, tensorage.operations to service_role;

-- Inner functions -----------------------------------------------------------------------------------

create or replace function tensorage.describe(d public.datasets) returns json
language sql stable set search_path = pg_catalog, pg_temp as $$
  select json_build_object(
    'id', d.id, 'user_id', d.user_id, 'owner', d.owner, 'key', d.key, 'shape', d.shape, 'dtype', d.dtype,
    'chunk', d.chunk, 'engine', d.engine, 'is_shared', d.is_shared, 'attrs', d.attrs, 'dims', d.dims,
    'state', d.state, 'version', d.version, 'created_at', d.created_at, 'updated_at', d.updated_at)
$$;

create or replace function tensorage.elements(shape bigint[]) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  product numeric := 1;
  extent bigint;
begin
  foreach extent in array shape loop
    product := product * extent;
  end loop;
  if product > 4611686018427387904 then
    raise exception using errcode = 'TS006', message = format('the shape %s has too many elements', shape);
  end if;
  return product;
end
$$;

-- The address that a user's account has now. A token tells the one that it had when the token was made.
create or replace function tensorage.address_of(user_id uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select u.email from auth.users u where u.id = address_of.user_id
$$;

-- The signed-in user, or an error: no function below works for nobody.
create or replace function tensorage.me() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not tensorage.is_user() then
    raise exception using errcode = '42501', message = 'only a signed-in user can do this';
  end if;
  return auth.uid();
end
$$;

-- Binary requests: 40 bytes, big-endian, then `meta_bytes` of JSON, then the elements in C order, little-endian.
--   0  4  magic "TNSR"          8  8  data_id            24  4  chunk: elements per block
--   4  2  format version (1)   16  8  index: first       28  4  meta_bytes
--   6  2  reserved (0)                element            32  8  count: elements that follow
create or replace function tensorage.integer_at(request bytea, at int, bytes int) returns bigint
language sql immutable as $$
  select ('x' || lpad(encode(substr(request, at + 1, bytes), 'hex'), 16, '0'))::bit(64)::bigint
$$;

do $$
begin
  create type tensorage.header as (
    data_id bigint, index bigint, chunk bigint, count bigint, meta json, elements_at int);
exception when duplicate_object then
  null; -- Applied before: a type has no "if not exists".
end
$$;

create or replace function tensorage.meta(encoded bytea) returns json
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return convert_from(encoded, 'UTF8')::json;
exception when data_exception or program_limit_exceeded then
  raise exception using errcode = 'TS006', message = format('the meta of the request is not JSON: %s', sqlerrm);
end
$$;

create or replace function tensorage.parse(request bytea) returns tensorage.header
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header;
  meta_bytes bigint;
begin
  if request is null or octet_length(request) < 40 or substr(request, 1, 4) <> '\x544e5352'::bytea then
    raise exception using errcode = 'TS006', message = 'the request does not begin with a tensorage header';
  elsif tensorage.integer_at(request, 4, 2) <> 1 then
    raise exception using errcode = 'TS006',
      message = format('the request has format version %s, this project reads version 1',
                       tensorage.integer_at(request, 4, 2)),
      hint = 'Client and project are of different versions: apply the migrations of the newer one.';
  end if;
  h.data_id := tensorage.integer_at(request, 8, 8);
  h.index := tensorage.integer_at(request, 16, 8);
  h.chunk := tensorage.integer_at(request, 24, 4);
  meta_bytes := tensorage.integer_at(request, 28, 4);
  h.count := tensorage.integer_at(request, 32, 8);
  -- An element has at least a byte, an array at most 2^62 elements: no sum below overflows.
  if h.count not between 0 and octet_length(request) - 40 - meta_bytes then
    raise exception using errcode = 'TS006', message = 'the header of the request contradicts its length';
  elsif h.chunk = 0 or h.index not between 0 and 4611686018427387904 then
    raise exception using errcode = 'TS006',
      message = format('there are no blocks of %s elements at element %s', h.chunk, h.index);
  end if;
  if meta_bytes > 0 then
    h.meta := tensorage.meta(substr(request, 41, meta_bytes::int));
  end if;
  h.elements_at := 40 + meta_bytes;
  return h;
end
$$;

-- Cuts the elements of a request into blocks of d. Sent twice, the same blocks stay as they are.
create or replace function tensorage.insert_blocks(
  d public.datasets, at_index bigint, elements bigint, chunk bigint, request bytea, elements_at int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if octet_length(request) - elements_at <> elements * d.itemsize then
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

-- Whether new blocks would overlap stored ones without replacing them whole: the array could never be complete, and
-- could hold any number of times the bytes that the quota was asked for.
create or replace function tensorage.cuts_blocks(
  d public.datasets, at_index bigint, elements bigint, chunk bigint) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from public.tensors t
     where t.data_id = d.id and t.index > at_index - d.chunk and t.index < at_index + elements
       and t.index + t.count > at_index
       and (t.index < at_index or t.index + t.count > at_index + elements or (t.index - at_index) % chunk <> 0))
$$;

-- The answer that this operation of this user gave before, or null. Also makes two requests of one operation
-- wait for each other, so that the second finds the first one's answer.
create or replace function tensorage.answered(operation uuid) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if operation is null then
    return null;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(format('tensorage operation %s of %s', operation, tensorage.me()), 0));
  return (select o.answer from tensorage.operations o where o.id = operation and o.user_id = auth.uid());
end
$$;

create or replace function tensorage.answer(operation uuid, answer json) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if operation is not null then
    insert into tensorage.operations (id, user_id, answer) values (operation, auth.uid(), answer);
  end if;
  return answer;
end
$$;

-- Refuses bytes over the caller's quota, beside those of every dataset but one. Staged arrays count from their
-- beginning.
create or replace function tensorage.check_quota(more_bytes numeric, beside bigint default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  allowed bigint := coalesce(
    (select q.max_bytes from tensorage.quotas q where q.user_id = auth.uid()),
    (select s.default_quota_bytes from tensorage.settings s));
  used numeric;
begin
  if allowed is null then
    return;
  end if;
  -- Two writers at once must not each find the same room.
  perform pg_advisory_xact_lock(hashtextextended('tensorage quota ' || auth.uid()::text, 0));
  select coalesce(sum(tensorage.elements(d.shape)::numeric * d.itemsize), 0) into used
    from public.datasets d
   where d.user_id = auth.uid() and d.id is distinct from beside
     and (d.state = 'committed' or d.expires_at > now());
  if used + more_bytes > allowed then
    raise exception using errcode = 'TS005',
      message = format('%s more bytes do not fit: %s of %s bytes are in use', more_bytes, used, allowed),
      detail = json_build_object('asked', more_bytes, 'used', used, 'allowed', allowed)::text;
  end if;
end
$$;

-- Deletes blocks of the caller's expired datasets, at most max_blocks of them: how many datasets are left.
create or replace function tensorage.sweep(max_blocks int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  room int := max_blocks;
  victim bigint;
  deleted int;
begin
  for victim in
    select d.id from public.datasets d
     where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now()
     order by d.expires_at for update skip locked
  loop
    exit when room <= 0;
    delete from public.tensors t where t.data_id = victim and t.index in (
      select v.index from public.tensors v where v.data_id = victim order by v.index limit room);
    get diagnostics deleted = row_count;
    room := room - deleted;
    if not exists (select from public.tensors t where t.data_id = victim) then
      delete from public.datasets d where d.id = victim;
    end if;
  end loop;
  delete from tensorage.operations o where o.user_id = auth.uid() and o.finished_at < now() - interval '1 day';
  return (select count(*) from public.datasets d
           where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now());
end
$$;

-- What a writer is told: the dataset, and how many datasets (such as the one it replaced) are left to sweep.
create or replace function tensorage.describe_and_sweep(d public.datasets) returns json
language sql set search_path = pg_catalog, pg_temp as $$
  select (tensorage.describe(d)::jsonb || jsonb_build_object('left', tensorage.sweep(64)))::json
$$;

-- Makes one writer after the other replace the array under a key. Taken after the lock of the quota, before any
-- array's row: all writers lock in this order, so that none waits for another in a circle.
create or replace function tensorage.lock_key(key text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select pg_advisory_xact_lock(hashtextextended(format('tensorage key %s of %s', key, auth.uid()), 0))
$$;

-- Makes a staged dataset with what `asked` says: key, shape, dtype, chunk, engine, is_shared, attrs, dims, operation,
-- append (rows for an array that is there), overwrite (an array that is there may be replaced).
create or replace function tensorage.stage(asked json) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
  target public.datasets;
  asked_shape bigint[] := array(select json_array_elements_text(asked -> 'shape')::bigint);
begin
  perform tensorage.sweep(64);
  select * into target from public.datasets t
   where t.user_id = tensorage.me() and t.key = asked ->> 'key' and t.state = 'committed';
  if coalesce((asked ->> 'append')::boolean, false) then
    perform tensorage.check_append(target, asked ->> 'key', asked_shape, asked ->> 'dtype');
  elsif target.id is not null and (asked ->> 'overwrite') is distinct from 'true' then
    raise exception using errcode = 'TS002', message = format('the key %L is taken', asked ->> 'key');
  end if;
  insert into public.datasets (
      user_id, key, shape, dtype, chunk, engine, is_shared, attrs, dims, overwrite, operation, append_to, expires_at)
    values (
      tensorage.me(), asked ->> 'key', asked_shape, asked ->> 'dtype', (asked ->> 'chunk')::int,
      coalesce(asked ->> 'engine', 'database'), coalesce((asked ->> 'is_shared')::boolean, false),
      coalesce((asked ->> 'attrs')::jsonb, '{}'),
      case json_typeof(asked -> 'dims') when 'array' then array(select json_array_elements_text(asked -> 'dims')) end,
      coalesce((asked ->> 'overwrite')::boolean, false), (asked ->> 'operation')::uuid,
      case when (asked ->> 'append')::boolean then target.id end,
      now() + interval '1 day')
    returning * into d;
  perform tensorage.check_quota(tensorage.elements(d.shape)::numeric * d.itemsize, d.id);
  return d;
end
$$;

create or replace function tensorage.check_append(
  target public.datasets, key text, shape bigint[], dtype text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if target.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array %L to append to', key);
  elsif target.dtype is distinct from dtype or cardinality(target.shape) = 0
        or target.shape[2:] is distinct from shape[2:] or cardinality(target.shape) <> cardinality(shape)
        or coalesce(shape[1], -1) < 0 then
    raise exception using errcode = 'TS006',
      message = format('rows of shape %s and dtype %s do not fit the array %L of shape %s and dtype %s',
                       shape, dtype, key, target.shape, target.dtype);
  end if;
end
$$;

-- Raises unless the blocks of d follow each other without a gap from element 0 to its last.
create or replace function tensorage.check_complete(d public.datasets) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  expected bigint := tensorage.elements(d.shape);
  stored bigint;
  contiguous boolean;
begin
  select coalesce(sum(b.count), 0), coalesce(bool_and(b.index = b.expected_index), true) into stored, contiguous
    from (select t.index, t.count,
                 coalesce(sum(t.count) over (order by t.index rows between unbounded preceding and 1 preceding), 0)
                   as expected_index
            from public.tensors t where t.data_id = d.id) b;
  if stored <> expected or not contiguous then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s elements of %L are there', stored, expected, d.key),
      detail = json_build_object('stored', stored, 'expected', expected)::text,
      hint = 'Send the missing blocks, or abort.';
  end if;
end
$$;

-- Makes the complete, locked, staged dataset d what its key stands for.
create or replace function tensorage.publish(d public.datasets) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  published public.datasets;
  replaced bigint;
begin
  perform tensorage.lock_key(d.key);
  if d.overwrite then
    -- Hidden now, deleted piece by piece: deleting a large array takes longer than a statement may.
    update public.datasets o set state = 'staged', expires_at = '-infinity', operation = null
     where o.user_id = d.user_id and o.key = d.key and o.state = 'committed' and o.id <> d.id
    returning o.version into replaced;
  end if;
  update public.datasets c set state = 'committed', expires_at = null, updated_at = now(),
         version = coalesce(replaced, 0) + 1, stable_since = coalesce(replaced, 0) + 1
   where c.id = d.id returning * into published;
  return published;
exception when unique_violation then
  raise exception using errcode = 'TS002', message = format('the key %L is taken', d.key);
end
$$;

-- Room for `rows` more rows at the end of the array: its row, locked and already of its new shape.
create or replace function tensorage.extend(target_id bigint, rows bigint) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  target public.datasets;
begin
  update public.datasets t set shape[1] = t.shape[1] + rows, version = t.version + 1, updated_at = now()
   where t.id = target_id and t.state = 'committed' returning * into target;
  if target.id is null then
    raise exception using errcode = 'TS003', message = 'the array to append to was replaced or deleted';
  end if;
  return target;
end
$$;

-- Merges the last blocks of an array while the last one is at least as large as the one before it: many small
-- appends then leave about log2 of them as blocks, and each element is rewritten about as many times.
create or replace function tensorage.merge_tail(d public.datasets) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  first bigint;
  total bigint;
  blocks int := 0;
  b record;
begin
  for b in select t.index, t.count from public.tensors t where t.data_id = d.id order by t.index desc loop
    exit when blocks > 0 and (b.count > total or b.count + total > d.chunk);
    first := b.index;
    total := coalesce(total, 0) + b.count;
    blocks := blocks + 1;
  end loop;
  if blocks < 2 then
    return;
  end if;
  with gone as (
    delete from public.tensors t where t.data_id = d.id and t.index > first returning t.index, t.tensor)
  update public.tensors t set count = total,
         tensor = t.tensor || (select string_agg(g.tensor, '' order by g.index) from gone g)
   where t.data_id = d.id and t.index = first;
end
$$;

-- Functions of the REST API -----------------------------------------------------------------------------

-- Not immutable: a plan that was cached with its answer in it would give it to those who may not ask.
create or replace function public.tensorage_version() returns int
language sql stable set search_path = pg_catalog, pg_temp as $$ select 1 $$;
comment on function public.tensorage_version() is 'Version of this schema. A client works with exactly one.';

-- The array under a key: the caller's own, or else the one that somebody shares under this key. An owner is named by the
-- address that their account has now. Security definer, as all reading functions: see the top of this file. Planned at each
-- call: a plan that was made when the table was nearly empty, where one index is as good as another, would be kept while
-- it grows.
create or replace function public.tensorage_open(key text, owner text default null) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_custom_plan as $$
declare
  me uuid := tensorage.me();
  found public.datasets;
  whose uuid[];
  shared bigint[];
begin
  if owner is not null then
    -- Auth keeps addresses in lower case. Projects have an index of the one form or of the other, without the accounts of
    -- single sign-on, of which several may have one address: these are only looked for where there is no other.
    whose := array(select u.id from auth.users u where u.email = lower(tensorage_open.owner)
                      and lower(u.email) = lower(tensorage_open.owner) and not u.is_sso_user);
    if cardinality(whose) = 0 then
      whose := array(select u.id from auth.users u where u.email = lower(tensorage_open.owner) and u.is_sso_user);
    end if;
  end if;
  if owner is null or me = any (whose) then
    select * into found from public.datasets d
     where d.user_id = me and d.key = tensorage_open.key and d.state = 'committed';
  end if;
  if found.id is null then
    -- Two statements, each with a condition that an index answers: many users may share one key.
    if owner is null then
      shared := array(select d.id from public.datasets d
                       where d.key = tensorage_open.key and d.is_shared and d.state = 'committed' order by d.id limit 10);
    else
      -- Whether it is shared is asked afterwards: the index of shared keys has an entry for each user who shares this one.
      shared := array(select s.id from unnest(whose) w(id), lateral (
                        select d.id, d.is_shared from public.datasets d
                         where d.user_id = w.id and d.key = tensorage_open.key and d.state = 'committed' offset 0) s
                       where s.is_shared limit 10);
    end if;
    if cardinality(shared) = 0 then
      raise exception using errcode = 'TS001', message = format('there is no array %L', key);
    elsif cardinality(shared) > 1 then
      raise exception using errcode = 'TS008',
        message = format('several users share an array %L: %s', key, (
          select string_agg(a.address, ', ' order by a.address)
            from (select tensorage.address_of(d.user_id) as address from public.datasets d
                   where d.id = any (shared) offset 0) a));
    end if;
    select * into found from public.datasets d where d.id = shared[1];
  end if;
  return tensorage.describe(found);
end
$$;

-- A dataset of the caller by its id, staged ones too.
create or replace function public.tensorage_dataset(data_id bigint) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  found public.datasets;
begin
  -- By the number alone: no other index answers that, whatever PostgreSQL thinks of the size of the table.
  select * into found from public.datasets d where d.id = data_id;
  if (found.user_id = me and (found.expires_at is null or found.expires_at > now())) is not true then
    raise exception using errcode = 'TS001', message = format('you have no dataset with id %s', data_id);
  end if;
  return tensorage.describe(found);
end
$$;

-- One page of the keys that the caller can open, in order, after a given one.
create or replace function public.tensorage_list(
  prefix text default '', after text default '', max_rows int default 1000) returns json
language sql stable set search_path = '' as $$
  select coalesce(json_agg(k.key order by k.key), '[]') from (
    (select d.key from public.datasets d
      where d.user_id = (select auth.uid()) and d.state = 'committed'
        and d.key >= prefix and d.key > after and starts_with(d.key, prefix)
        order by d.key limit least(max_rows, 1000))
    union
    (select d.key from public.datasets d
      where d.is_shared and d.state = 'committed'
        and d.key >= prefix and d.key > after and starts_with(d.key, prefix)
        order by d.key limit least(max_rows, 1000))
    order by 1 limit least(max_rows, 1000)) k
$$;

-- Number of keys that tensorage_list would list. Each of the two indexes is read by itself: "or" would have all users' datasets
-- read.
create or replace function public.tensorage_count() returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
  select count(*) from (
    select d.key from public.datasets d where d.user_id = (select tensorage.me()) and d.state = 'committed'
    union
    select d.key from public.datasets d where d.is_shared and d.state = 'committed') k
$$;

-- The elements at rows[i] + runs[j] .. + run_length - 1, for every i and j, i outermost.
create or replace function public.tensorage_read(
  data_id bigint, version bigint, rows bigint[], runs bigint[], run_length bigint)
returns public."application/vnd.tensorage"
language plpgsql stable set search_path = '' as $$
declare
  d public.datasets;
  -- Not a bigint: what is asked for may be anything.
  wanted numeric := cardinality(rows)::numeric * cardinality(runs) * run_length;
  answer bytea;
begin
  select * into d from public.datasets s where s.id = tensorage_read.data_id;
  if d.id is null or d.state <> 'committed'
     or (tensorage_read.version between d.stable_since and d.version) is not true then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  elsif wanted is null or run_length < 1 then
    raise exception using errcode = 'TS006',
      message = format('%s rows of %s runs of %s elements are no selection',
                       cardinality(rows), cardinality(runs), run_length);
  elsif wanted * d.itemsize > 268435456 then
    raise exception using errcode = 'TS006',
      message = format('%s elements are too many for one request', wanted), hint = 'Ask for less at a time.';
  end if;
  -- No block is longer than d.chunk, so that one which reaches into a run begins within that distance of it.
  -- Subqueries, not joins: each is answered in the order of the index, and nothing is sorted with its bytes.
  select string_agg((
      select string_agg(s.piece, '') from (
        select substr(t.tensor,
                      (greatest(p.first - t.index, 0) * d.itemsize)::int + 1,
                      ((least(t.index + t.count, p.first + run_length) - greatest(t.index, p.first)) * d.itemsize)::int
               ) as piece
          from public.tensors t
         where t.data_id = d.id and t.index > p.first - d.chunk and t.index < p.first + run_length
           and t.index + t.count > p.first
         order by t.index) s), '')
    into answer
    -- Not a join, either: it may be done from either side, and nothing would be in its place.
    from (select r.at + unnest(runs) as first from unnest(rows) r(at)) p;
  if coalesce(octet_length(answer), 0) <> wanted * d.itemsize then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s bytes asked for are there', coalesce(octet_length(answer), 0), wanted * d.itemsize),
      hint = 'The selection lies outside of the array, or its blocks were deleted behind its back.';
  end if;
  return coalesce(answer, '');
end
$$;

-- Declares an array that comes in several requests: a staged dataset, to be filled by tensorage_put.
create or replace function public.tensorage_begin(
  key text, shape bigint[], dtype text, chunk int, engine text default 'database', is_shared boolean default false,
  attrs jsonb default '{}', dims text[] default null, overwrite boolean default false, append boolean default false,
  operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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
      'attrs', attrs, 'dims', dims, 'overwrite', overwrite, 'append', append, 'operation', operation));
  end if;
  return tensorage.describe(d);
end
$$;

-- Blocks of a staged dataset. Sent twice, they are stored once.
create or replace function public.tensorage_put(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  d public.datasets;
begin
  -- Before the shared lock below, which two writers hold at once: neither could then update the row.
  update public.datasets s set expires_at = now() + interval '1 day'
   where s.id = h.data_id and s.user_id = tensorage.me() and s.state = 'staged'
     and s.expires_at between now() and now() + interval '12 hours';
  -- Shared among the writers, and against the commit, which must not overtake a block.
  select * into d from public.datasets s where s.id = h.data_id and s.user_id = tensorage.me() for share;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', h.data_id);
  elsif d.state <> 'staged' or d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L is no longer being written', d.key);
  elsif h.index + h.count > tensorage.elements(d.shape) then
    raise exception using errcode = 'TS006',
      message = format('elements %s to %s lie outside of the shape %s', h.index, h.index + h.count, d.shape);
  elsif tensorage.cuts_blocks(d, h.index, h.count, h.chunk) then
    raise exception using errcode = 'TS006',
      message = format('elements %s to %s are stored in other blocks', h.index, h.index + h.count),
      hint = 'Send the same blocks again, or abort.';
  end if;
  perform tensorage.insert_blocks(d, h.index, h.count, h.chunk, $1, h.elements_at);
  return json_build_object('id', d.id, 'index', h.index, 'count', h.count);
end
$$;

-- Makes a complete staged dataset visible in one step (or, begun as an append, the end of its array).
create or replace function public.tensorage_commit(
  data_id bigint, operation uuid default null) returns json
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
  return tensorage.sweep(256);
end
$$;

-- A whole small array in one request. Its meta is what tensorage_begin takes.
create or replace function public.tensorage_store(bytea) returns json
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
    raise exception using errcode = 'TS006', message = 'rows are appended by tensorage_append, not stored';
  end if;
  d := tensorage.stage(h.meta);
  if h.count <> tensorage.elements(d.shape) then
    raise exception using errcode = 'TS004',
      message = format('%s elements do not fill the shape %s', h.count, d.shape);
  end if;
  perform tensorage.insert_blocks(d, 0, h.count, h.chunk, $1, h.elements_at);
  return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish(d)));
end
$$;

-- Rows at the end of an array, in one request. Meta: key, shape (of the rows), dtype, operation.
create or replace function public.tensorage_append(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  operation uuid := (h.meta ->> 'operation')::uuid;
  before json := tensorage.answered(operation);
  added bigint[] := array(select json_array_elements_text(h.meta -> 'shape')::bigint);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.user_id = tensorage.me() and s.key = h.meta ->> 'key' and s.state = 'committed';
  perform tensorage.check_append(d, h.meta ->> 'key', added, h.meta ->> 'dtype');
  if h.count <> tensorage.elements(added) then
    raise exception using errcode = 'TS004', message = format('%s elements do not fill the shape %s', h.count, added);
  end if;
  perform tensorage.check_quota(h.count::numeric * d.itemsize);
  d := tensorage.extend(d.id, added[1]);
  perform tensorage.insert_blocks(d, tensorage.elements(d.shape) - h.count, h.count, h.chunk, $1, h.elements_at);
  perform tensorage.merge_tail(d);
  return tensorage.answer(operation, tensorage.describe(d));
end
$$;

-- Deletes an array of the caller. {"left": datasets still to be swept}
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
  return tensorage.answer(operation, json_build_object('id', removed, 'left', tensorage.sweep(256)));
end
$$;

-- Deletes a further piece of what the caller removed, replaced or left behind. How many datasets are left.
create or replace function public.tensorage_sweep() returns int
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform tensorage.me();
  return tensorage.sweep(256);
end
$$;

-- Shares an array of the caller with every signed-in user, for reading, or ends that.
create or replace function public.tensorage_share(key text, is_shared boolean) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  update public.datasets s set is_shared = tensorage_share.is_shared, updated_at = now()
   where s.user_id = tensorage.me() and s.key = tensorage_share.key and s.state = 'committed' returning * into d;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('you have no array %L', key);
  end if;
  return tensorage.describe(d);
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
  for f in select p.oid from pg_proc p
            where p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage_') loop
    execute format('grant execute on function %s to authenticated, service_role', f);
  end loop;
end
$$;

notify pgrst, 'reload schema';
