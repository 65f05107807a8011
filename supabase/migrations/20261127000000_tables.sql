-- tensorage: schema, types and tables.
--
-- These files make one schema, a subject each, in the order of their names; `tensorage_version()`, in the last one, says
-- which. They run as hosted Supabase's role `postgres` (no superuser, not the owner of `auth` and `storage`), on PostgreSQL
-- 15 to 18: by `supabase db push`, in an SQL editor, or by the embedded backend; and again on top of themselves.
--
-- Rights, in short:
--   * `authenticated` may select from the tables; row-level security lets through what is the user's own, and what others
--     share with the user (tensorage.may_use);
--   * all writing goes through functions: no role but the owner may write the tables. A user who could write them could
--     store past the quota, or change a committed block under a reader;
--   * functions that read or write run as the owner of the tables (`security definer`), and compare the owner of an array
--     with auth.uid() before they touch it. Their search_path keeps temporary types behind PostgreSQL's own: in an empty
--     search_path, a caller's temporary type would come first;
--   * the functions that read do not lean on row-level security: PostgreSQL 15 keeps a condition that may raise an error
--     out of an index scan behind it, and would walk a whole array for each sample;
--   * `anon` may do nothing.
--
-- Errors that the client tells apart carry SQLSTATEs of class TS:
--   TS001 no such array             TS005 over the quota                  TS009 the array has another dtype
--   TS002 the key is taken          TS006 the request makes no sense      TS010 the array is kept by another engine
--   TS003 changed since opened      TS007 the caller may only read it
--   TS004 elements are missing
-- The detail of TS009 and TS010 is the description of the array.
--
-- Locks are taken in this order, so that no two requests wait for each other in a circle: the operation
-- (tensorage.answered), the staged dataset (tensorage.staged, tensorage_commit), the owner's renamings (tensorage.renamings), the
-- keys (tensorage.lock_key), the committed arrays, in the order of their ids, their blocks or shards in order, the owner's shares
-- (tensorage.lock_shares), and last, when a request waits for nothing else, reservations and totals (tensorage.settle).
-- Sweeping waits for nobody: it passes by rows that are locked. It comes behind all waiting as well: a request that looked before an
-- array was replaced may wait for the row that is being swept.

-- Schemas 1 to 6 were never released, and no migration leads from them: their tables would be left as they are, and their
-- functions replaced. This stands before all else, so that nothing has changed when it raises.
do $$
declare
  installed int;
begin
  if to_regprocedure('public.tensorage_version()') is not null then
    select public.tensorage_version() into installed;
    if installed < 7 then
      raise exception using
        message = format('this project has version %s of tensorage''s schema, which was never released: it cannot be migrated, '
                         'and nothing has been changed', installed),
        hint = 'Read what you need with the checkout of tensorage that made it. Then remove that schema (the page '
               '"Troubleshooting" of the documentation has the SQL) or reset the database, and apply these migrations.';
    end if;
  end if;
end
$$;

create schema if not exists tensorage;
comment on schema tensorage is 'Inner parts of tensorage: not exposed over REST.';

-- The media type of answers that are bytes. PostgREST sends a function's result as it is if its type bears this name.
do $$
begin
  create domain public."application/vnd.tensorage" as bytea;
exception when duplicate_object then
  null; -- Applied before: a domain has no "if not exists".
end
$$;

-- Functions that the tables are computed and checked with ------------------------------------------

-- Number of elements of an array of this shape.
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
    raise exception using errcode = 'TS006', message = format('the shape %s has too many elements', tensorage.shape_text(shape));
  end if;
  return product;
end
$$;

-- True if the elements of a dtype have any length. They are kept as the file on ragged arrays says, and count as elements of
-- one byte wherever sizes are computed from a shape.
create or replace function tensorage.is_ragged(dtype text) returns boolean
language sql immutable as $$ select dtype = 'text' or left(dtype, 1) = '{' $$;

-- True if the elements of a dtype are text of any length.
create or replace function tensorage.is_text(dtype text) returns boolean
language sql immutable as $$ select dtype in ('text', '{"ragged":"text"}') $$;

-- The number that the bytes of each element are a multiple of, for elements of any length; 0 for a text that is no such dtype:
-- "text", for arrays of text; or JSON, for ragged arrays of text, of bytes, or of samples with any number of rows, which have a
-- dtype and a shape.
create or replace function tensorage.ragged_unit(dtype text) returns int
language plpgsql immutable strict set search_path = pg_catalog, pg_temp as $$
declare
  form jsonb;
  extent jsonb;
  unit numeric;
begin
  if dtype in ('text', '{"ragged":"text"}', '{"ragged":"bytes"}') then
    return 1;
  elsif left(dtype, 1) <> '{' or octet_length(dtype) > 65536 then
    return 0;
  end if;
  form := dtype::jsonb;
  if jsonb_typeof(form -> 'ragged') is distinct from 'string' or jsonb_typeof(form -> 'shape') is distinct from 'array'
     or form - array['ragged', 'shape'] <> '{}' or jsonb_array_length(form -> 'shape') > 62
     or tensorage.is_ragged(form ->> 'ragged') then
    return 0;
  end if;
  unit := tensorage.itemsize(form ->> 'ragged');
  for extent in select e from jsonb_array_elements(form -> 'shape') e loop
    if jsonb_typeof(extent) <> 'number' or extent::text !~ '^[1-9]\d{0,6}$' then
      return 0;
    end if;
    unit := unit * extent::text::int;
  end loop;
  return case when unit <= 4194304 then unit else 0 end;
exception when data_exception then
  return 0;
end
$$;

-- Bytes of an element of a dtype, 0 for a text that is none, 1 for one of any length. A dtype is numpy's dtype.str,
-- little-endian, of numbers, truth values, times, and text or bytes of one length; the name of a small float of ml_dtypes; or
-- for records their fields as JSON, each a list of a name, a dtype or fields again, and perhaps a shape. Fields follow each
-- other without padding.
create or replace function tensorage.itemsize(dtype text) returns int
language plpgsql immutable strict set search_path = pg_catalog, pg_temp as $$
begin
  if dtype ~ '^(\|[biu]1|<[iu][248]|<f(2|4|8|12|16)|<c(8|16|24|32)|<[mM]8(\[[0-9A-Za-z/]{1,32}\])?|\|[SV][1-9]\d{0,6})$' then
    return substring(dtype from '^..(\d+)')::int;
  elsif dtype ~ '^<U[1-9]\d{0,5}$' then
    return 4 * substring(dtype from '^..(\d+)')::int;
  elsif dtype = 'bfloat16' then
    return 2;
  elsif dtype ~ '^float8_(e3m4|e4m3|e4m3b11fnuz|e4m3fn|e4m3fnuz|e5m2|e5m2fnuz|e8m0fnu)$' then
    return 1;
  elsif left(dtype, 1) = '[' and octet_length(dtype) <= 65536 then
    begin
      return coalesce(tensorage.record_size(dtype::jsonb, 1), 0);
    exception when data_exception then
      return 0;
    end;
  elsif tensorage.ragged_unit(dtype) > 0 then
    return 1;
  end if;
  return 0;
end
$$;

-- Bytes of a record with these fields, null if they make no dtype. `depth` counts the records round it, itself included.
create or replace function tensorage.record_size(fields jsonb, depth int) returns int
language plpgsql immutable strict set search_path = pg_catalog, pg_temp as $$
declare
  total numeric := 0;
  names text[] := '{}';
  field jsonb;
  extent jsonb;
  size numeric;
begin
  if depth > 16 or jsonb_typeof(fields) <> 'array' or jsonb_array_length(fields) = 0 then
    return null;
  end if;
  for field in select f from jsonb_array_elements(fields) f loop
    if jsonb_typeof(field) <> 'array' or jsonb_array_length(field) not in (2, 3) or jsonb_typeof(field -> 0) <> 'string'
       or field ->> 0 = '' or field ->> 0 = any (names) then
      return null;
    end if;
    names := names || (field ->> 0);
    size := case jsonb_typeof(field -> 1)
              when 'array' then tensorage.record_size(field -> 1, depth + 1)
              when 'string' then case when field ->> 1 !~ '^[[{t]' then nullif(tensorage.itemsize(field ->> 1), 0) end
            end;
    if jsonb_array_length(field) = 3 then
      if jsonb_typeof(field -> 2) <> 'array' or jsonb_array_length(field -> 2) not between 1 and 32 then
        return null;
      end if;
      for extent in select e from jsonb_array_elements(field -> 2) e loop
        if jsonb_typeof(extent) <> 'number' or extent::text !~ '^[1-9]\d{0,6}$' then
          return null;
        end if;
        size := size * extent::text::int;
      end loop;
    end if;
    total := total + size;
    if total is null or total > 1048576 then
      return null;
    end if;
  end loop;
  return total;
end
$$;

-- True if the name of an object leads nowhere else as a part of a URL: no part of it is empty or made of dots alone.
create or replace function tensorage.is_plain_name(object_name text) returns boolean
language sql immutable as $$
  select object_name !~ '(^|/)\.{0,2}(/|$)' and object_name !~ '[[:cntrl:]\\?#%]'
$$;

-- The attributes of an array together with its owner, so that one index finds both.
create or replace function tensorage.tag(user_id uuid, attrs jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return jsonb_build_object('user', user_id::text, 'attrs', attrs);
end
$$;

-- Arrays -------------------------------------------------------------------------------------------

create table if not exists public.datasets (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid() references auth.users on delete cascade,
  -- The user who writes it, while it is staged: the owner, or somebody with whom the owner shares an array for writing. No
  -- reference to the account: when that is deleted, the owner sweeps what it has left. Null for rows that no user made.
  writer uuid default auth.uid(),
  -- The owner's address when the array was made. It may be somebody else's by now: functions look up the present one.
  owner text,
  -- "C" makes the order of keys, and the range that a prefix stands for, the same in every project.
  key text collate "C" not null check (octet_length(key) between 1 and 1024),
  -- numpy has no more than 64 axes.
  shape bigint[] not null
    check (array_position(shape, null) is null and 0 <= all (shape) and cardinality(shape) <= 64),
  -- In the form that tensorage.itemsize knows. The check asks the column, which every change of a row has at hand.
  dtype text not null,
  itemsize int not null generated always as (tensorage.itemsize(dtype)) stored check (itemsize between 1 and 1048576),
  -- Stored, since reads and reservations ask for it. A generated column cannot be computed from another one (itemsize).
  nbytes numeric not null
    generated always as (tensorage.elements(shape)::numeric * tensorage.itemsize(dtype)) stored,
  -- Elements of the largest block: readers look no further back than this for the block that an element is in.
  block_size int not null check (block_size > 0),
  engine text not null default 'database' check (engine in ('database', 'storage')),
  -- Zarr v3 metadata of an array of Storage, without shape, attributes and names of dimensions. Not jsonb: its numbers do
  -- not know -0.0.
  zarr json check (json_typeof(zarr) = 'object' and octet_length(zarr::text) <= 65536),
  -- True if the commit shares the array with every signed-in user.
  share_at_commit boolean not null default false,
  -- Bytes of elements that are stored: of blocks, or of objects. Known once the dataset is committed.
  stored_bytes numeric,
  -- At most a mebibyte each: also a project without a quota bounds them.
  attrs jsonb not null default '{}' check (jsonb_typeof(attrs) = 'object' and octet_length(attrs::text) <= 1048576),
  dims text[] check (octet_length(array_to_string(dims, '', '')) <= 1048576),
  state text not null default 'staged' check (state in ('staged', 'committed')),
  version bigint not null default 1,
  -- The version since which no stored element has changed. An append only adds to what a reader has opened.
  stable_since bigint not null default 1,
  -- The element that stands for those never written, of an array whose elements need not all be there. Null for all others.
  fill bytea check (octet_length(fill) = itemsize),
  -- True if the commit may replace the array that is under the key.
  overwrite boolean not null default false,
  -- The array that a staged append goes to; and, for an array of Storage, the rows that it is added behind.
  append_to bigint references public.datasets on delete cascade,
  base_rows bigint,
  -- The array, and the version of it, that a staged assignment holds changed copies of blocks or shards of.
  assign_to bigint references public.datasets on delete cascade,
  assign_version bigint,
  -- The client's own id of the operation that began this dataset.
  operation uuid,
  -- The time from which a staged dataset may be swept. -infinity once it was aborted, replaced or removed: that is in the
  -- past also for a request that began earlier. Null while committed.
  expires_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint dims_name_every_axis check (dims is null or cardinality(dims) = cardinality(shape)),
  constraint committed_stays check ((state = 'committed') = (expires_at is null)),
  constraint only_staged_rows_are_appended check (append_to is null or state = 'staged'),
  -- Appends merge blocks up to this size, again and again.
  constraint blocks_are_small check (block_size::bigint * itemsize <= 67108864),
  constraint zarr_is_of_storage check ((engine = 'storage') = (zarr is not null)),
  -- The writer is a part of it, so that another user's operation is never met, not even as a conflict. The operation comes
  -- first: without statistics, PostgreSQL would take an index that begins with the user for other look-ups, too.
  unique (operation, writer)
);
create unique index if not exists datasets_committed_key on public.datasets (user_id, key) where state = 'committed';
create index if not exists datasets_staged on public.datasets (user_id, expires_at) where state = 'staged';
-- Datasets by which somebody writes to arrays of others.
create index if not exists datasets_of_writers on public.datasets (writer, expires_at) where writer <> user_id;
create index if not exists datasets_append_to on public.datasets (append_to) where append_to is not null;
create index if not exists datasets_assign_to on public.datasets (assign_to) where assign_to is not null;

-- Arrays by their attributes. Without the list of pending entries, which every search would have to read.
create index if not exists datasets_attrs on public.datasets using gin (tensorage.tag(user_id, attrs) jsonb_path_ops)
  with (fastupdate = off) where state = 'committed' and attrs <> '{}';

-- Blocks of arrays of the engine "database".
create table if not exists public.tensors (
  data_id bigint not null references public.datasets on delete cascade,
  -- The dataset's owner once more, so that the policy is one comparison.
  user_id uuid not null,
  -- Position of the block's first element in the flat array.
  index bigint not null check (index >= 0),
  count int not null check (count > 0),
  tensor bytea not null,
  primary key (data_id, index)
);
-- Uncompressed and out of line, so that substr() reads only the pages it needs. A statement of its own: PostgreSQL 15 does
-- not take it in "create table".
alter table public.tensors alter column tensor set storage external;

-- Shards of arrays of the engine "storage": one object each, or none if all its elements are the fill value. This table
-- says which objects an array has; nothing lists the bucket to find out. An object is never written over once it is a part
-- of an array: a change makes new objects in a folder of its own, named by the number of the staged dataset, and the commit
-- puts them in place of the old ones in one transaction. The client deletes the old ones afterwards, since SQL cannot.
create table if not exists public.shards (
  data_id bigint not null references public.datasets on delete cascade,
  -- The dataset's owner once more, so that the policy is one comparison.
  user_id uuid not null,
  -- Position in the grid of shards, in C order.
  number bigint not null check (number >= 0),
  -- Name of the object in the bucket; null if there is none.
  name text collate "C" check (octet_length(name) <= 1024),
  nbytes bigint not null check (nbytes >= 0),
  -- Length of each chunk in the object, as little-endian uint16 or uint32, if chunks lie one after another; else offset and
  -- length of each, as uint64; empty if the object is one chunk. At most as many chunks as a client cuts a shard into: also a
  -- project without a quota bounds them.
  index bytea not null check (octet_length(index) % 2 = 0 and octet_length(index) <= 16 * 65536),
  -- Rows of axis 0 that are there so far, while the shard is being written; null once it is whole.
  filled int8multirange,
  -- Encoded chunks behind those of the object, if there is one: of rows that were appended since it was written. The index
  -- counts their bytes on from the end of the object.
  tail bytea check (octet_length(tail) between 1 and 262144),
  -- Loose rows: elements of whole rows as a request brought them, in C order, little-endian, which no chunk has yet. They are the
  -- last rows of a shard as wide as its array, from row `loose_at` of it on, where a chunk begins; what the index says of chunks
  -- from there on does not count.
  loose bytea check (octet_length(loose) between 1 and 131072),
  loose_at int check (loose_at >= 0),
  -- For a shard of a staged append that keeps the object of the one it replaces: the bytes of that one's tail which it keeps.
  -- Its own tail comes behind them. Null for all others.
  kept int check (kept >= 0),
  -- The shard that one of a staged append or assignment is made from and replaces, by its fingerprint (tensorage.shard_fingerprint); null if
  -- the array has no such shard yet.
  based_on text collate "C",
  primary key (data_id, number),
  constraint an_object_has_bytes check ((name is null) = (nbytes = 0)),
  constraint objects_are_in_the_folder_of_the_user check (starts_with(name, user_id::text || '/')),
  constraint objects_have_plain_names check (tensorage.is_plain_name(name)),
  constraint based_on_is_a_fingerprint check (octet_length(based_on) <= 1100),
  constraint kept_is_of_another_shard check (kept is null or (name is null and based_on is not null)),
  constraint loose_rows_begin_somewhere check ((loose is null) = (loose_at is null))
);
create unique index if not exists shards_name on public.shards (name);
-- It is compressed already.
alter table public.shards alter column tail set storage external;
-- Rows come one by one, and compressing all of them each time would take longer than all else.
alter table public.shards alter column loose set storage external;

-- The blocks, by their index, and the shards, by their number, of arrays with a fill value. One that stands here and is not in
-- its own table was lost. One that stands in neither was never written.
create table if not exists tensorage.written (
  data_id bigint not null references public.datasets on delete cascade,
  number bigint not null,
  -- For a block of a staged assignment: xmin of the block that it is a changed copy of; null if the array has none there.
  based_on bigint,
  primary key (data_id, number)
);

-- Sharing ------------------------------------------------------------------------------------------

-- One relation says who may use whose arrays and files, and one rule reads it: tensorage.may_use. A share belongs to a key,
-- and not to a dataset: an array that is overwritten stays shared.
create table if not exists tensorage.shares (
  id bigint generated always as identity primary key,
  user_id uuid not null references auth.users on delete cascade,
  -- A key, or the path of a file; or all below it, if it ends with "/".
  pattern text collate "C" not null check (octet_length(pattern) between 1 and 1024),
  -- Address of the account that may, in lower case; '' for every signed-in user. An address, and not the id of an account: it
  -- counts for the account that has confirmed it, now or later, and to look one up would tell whether there is one.
  reader text collate "C" not null check (octet_length(reader) <= 320 and reader = lower(reader)),
  can_write boolean not null default false,
  expires_at timestamptz check (isfinite(expires_at)),
  created_at timestamptz not null default now(),
  unique (user_id, pattern, reader)
);
create index if not exists shares_reader on tensorage.shares (reader, user_id, pattern);
create index if not exists shares_given_to on tensorage.shares (reader, id);

-- Requests, quotas and totals ----------------------------------------------------------------------

-- Answers of operations, so that the same operation sent again is answered as the first time.
create table if not exists tensorage.operations (
  user_id uuid not null references auth.users on delete cascade,
  id uuid not null,
  -- The user whose quota the answer counts against: the owner of the array, or the client that keeps it from being forgotten.
  owner uuid not null,
  answer json not null,
  -- Infinity while the client may send the operation again: see tensorage.is_spooled.
  finished_at timestamptz not null default now(),
  primary key (user_id, id)
);
create index if not exists operations_finished on tensorage.operations (user_id, finished_at);
-- Answers to those who wrote to arrays of others.
create index if not exists operations_of_writers on tensorage.operations (owner, finished_at) where owner <> user_id;

create table if not exists tensorage.quotas (
  user_id uuid primary key references auth.users on delete cascade,
  max_bytes bigint check (max_bytes >= 0),
  max_arrays bigint check (max_arrays >= 0)
);
comment on table tensorage.quotas is 'Bytes and arrays that a user may store. No row, or null: the default of tensorage.settings.';

create table if not exists tensorage.settings (
  only_row boolean primary key default true check (only_row),
  default_quota_bytes bigint check (default_quota_bytes >= 0),
  default_quota_arrays bigint check (default_quota_arrays >= 0),
  audit_days int not null default 90 check (audit_days >= 1)
);
-- Look-ups say "where only_row", for which there is an index: functions that forbid scans of whole tables call them.
comment on column tensorage.settings.default_quota_bytes is 'Bytes that each user may store; null: no limit.';
comment on column tensorage.settings.default_quota_arrays is 'Arrays that each user may store; null: no limit.';
comment on column tensorage.settings.audit_days is 'Days for which records of tensorage.audit are kept.';
insert into tensorage.settings default values on conflict do nothing;

-- Half of each page is left empty, here and below: an update then finds room for the new row next to the old one.
create table if not exists tensorage.usage (
  user_id uuid primary key references auth.users on delete cascade,
  bytes numeric not null default 0,
  file_bytes numeric not null default 0,
  arrays bigint not null default 0
) with (fillfactor = 50);
comment on table tensorage.usage is 'What counts against a user''s quota: bytes that are stored and reserved, and arrays.';
comment on column tensorage.usage.file_bytes is 'The part of bytes that files take.';

-- Room for bytes that were declared and have not come yet. The bytes of a dataset use up its reservation first.
create table if not exists tensorage.reservations (
  data_id bigint primary key references public.datasets on delete cascade,
  user_id uuid not null,
  bytes numeric not null check (bytes >= 0)
) with (fillfactor = 50);
create index if not exists reservations_user on tensorage.reservations (user_id);

-- Requests that stage elements do not wait for the disk, so that a crash of PostgreSQL may lose some that were answered.
-- This table tells of the crash: being unlogged, it is empty afterwards. A dataset without a row here is written no
-- further, and never committed. Every function that adds to a staged dataset, and each commit, calls
-- tensorage.check_uncrashed.
create unlogged table if not exists tensorage.stagings (
  data_id bigint primary key references public.datasets on delete cascade
);
comment on table tensorage.stagings is 'Datasets that are being written since the last crash. Unlogged on purpose.';

-- Records of who did what ---------------------------------------------------------------------------

-- Rows are added, swept when they are old, and never changed. No role of the API may write here.
create table if not exists tensorage.audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  user_id uuid not null references auth.users on delete cascade,
  -- The user who did it: the owner, or somebody with whom the array is shared. Null for the project itself.
  actor uuid,
  -- Their address, if the owner shares by it or is the actor: nobody else's is told.
  actor_address text,
  action text not null check (action in ('created', 'replaced', 'changed', 'renamed', 'shared', 'unshared', 'deleted')),
  key text collate "C" not null,
  -- The former key of an array that was renamed; the reader of a share.
  detail text
);
comment on column tensorage.audit.user_id is 'The owner of the array.';
create index if not exists audit_user on tensorage.audit (user_id, at, id);
create index if not exists audit_key on tensorage.audit (user_id, key, id);

-- Nobody sees a row before a policy says so: the files on access and grants say who may see which.
alter table public.datasets enable row level security;
alter table public.tensors enable row level security;
alter table public.shards enable row level security;
alter table tensorage.shares enable row level security;
alter table tensorage.audit enable row level security;
alter table tensorage.operations enable row level security;
alter table tensorage.quotas enable row level security;
alter table tensorage.settings enable row level security;
alter table tensorage.usage enable row level security;
alter table tensorage.reservations enable row level security;
alter table tensorage.stagings enable row level security;
alter table tensorage.written enable row level security;
