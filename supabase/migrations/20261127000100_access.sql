-- tensorage: the caller, the policies of the tables, and look-ups that let a caller have an array or refuse it.

-- The caller ---------------------------------------------------------------------------------------

-- True if the token is that of an existing user: a deleted user may hold a valid token for an hour more.
-- Security definer: nobody else may read auth.users.
-- PL/pgSQL, here and below: a function in SQL with settings of its own is planned anew at each call.
create or replace function tensorage.is_user() returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return exists (select from auth.users u where u.id = auth.uid() and u.deleted_at is null);
end
$$;

-- Id of the signed-in user, or an error. Every function of the API calls it, so that none works for nobody.
create or replace function tensorage.me() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not tensorage.is_user() then
    raise exception using errcode = '42501', message = 'only a signed-in user can do this';
  end if;
  return auth.uid();
end
$$;

-- The address that a user's account has now, if it is confirmed: without that, anybody could give themselves any address. A
-- token tells the address of the time when it was made. Auth keeps addresses in lower case. Several accounts of single
-- sign-on may have one address: it counts for the other kind of account, if there is one.
create or replace function tensorage.address_of(user_id uuid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return (
    select lower(u.email) from auth.users u
     where u.id = address_of.user_id and u.email_confirmed_at is not null
       and (not u.is_sso_user or not exists (
         select from auth.users o where o.email = u.email and lower(o.email) = lower(u.email) and not o.is_sso_user
                                    and o.email_confirmed_at is not null)));
end
$$;

-- Name of a user for messages: the address, or the id of an account without one.
create or replace function tensorage.name_of(user_id uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(tensorage.address_of(user_id), user_id::text)
$$;

-- The accounts that somebody is called by: an address, or the id of an account. None for an address that nobody has
-- confirmed. Projects have an index on the address or on its lower case; both conditions are written down so that either
-- index answers. It leaves out accounts of single sign-on, which are only looked for if there is no other account.
create or replace function tensorage.accounts(who text) returns uuid[]
language plpgsql stable set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_custom_plan as $$
declare
  found uuid[];
begin
  if who ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    return array[who::uuid];
  end if;
  found := array(select u.id from auth.users u where u.email = lower(who) and lower(u.email) = lower(who)
                    and not u.is_sso_user and u.email_confirmed_at is not null);
  if cardinality(found) = 0 then
    found := array(select u.id from auth.users u where u.email = lower(who) and u.is_sso_user
                      and u.email_confirmed_at is not null limit 10);
  end if;
  return found;
end
$$;

-- The rule of sharing ------------------------------------------------------------------------------

-- The patterns that a share of a key may have: the key, and each prefix of it that ends with "/". Each once: a key that ends
-- with "/" is the last of its prefixes. Without settings of its own, so that it becomes a part of the query that calls it.
create or replace function tensorage.patterns_of(key text) returns setof text
language sql immutable as $$
  select left(key, at) from generate_series(1, length(key)) at where at = length(key) or substr(key, at, 1) = '/'
$$;

-- The readers that the caller is: every signed-in user, and the account of the caller's address.
create or replace function tensorage.my_readers() returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array['', tensorage.address_of(auth.uid())];
end
$$;

-- True if the owner of a key shares it with the caller, for reading or also for writing. All that is somebody else's is let
-- through by this rule and by nothing else: rows, shards, objects and files.
create or replace function tensorage.is_shared_with_me(owner uuid, key text, to_write boolean default false) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
begin
  -- Each pair of a pattern and a reader is looked up by all columns of an index: with fewer of them, PostgreSQL may read all
  -- shares of the owner, or of the reader.
  return exists (
    select from tensorage.patterns_of(key) p(pattern), unnest(tensorage.my_readers()) r(reader), lateral (
      select s.can_write, s.expires_at from tensorage.shares s
       where s.user_id = owner and s.pattern = p.pattern and s.reader = r.reader offset 0) s
     where (s.expires_at is null or s.expires_at > now()) and (s.can_write or not to_write));
end
$$;

-- True if the caller may use an array or a file: the own one, or one that is shared. Security definer: policies call it.
create or replace function tensorage.may_use(owner uuid, key text, to_write boolean default false) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return owner = auth.uid() or tensorage.is_shared_with_me(owner, key, to_write);
end
$$;

-- True if a dataset is a committed array that the caller may read: for policies, which look at one row after the other.
create or replace function tensorage.may_read_rows_of(data_id bigint) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  d public.datasets;
begin
  select * into d from public.datasets s where s.id = may_read_rows_of.data_id;
  return d.state = 'committed' and tensorage.may_use(d.user_id, d.key);
end
$$;

-- Live shares of an owner that let anybody use a key: those of the key, and of each prefix of it.
create or replace function tensorage.shares_of(owner uuid, key text) returns setof tensorage.shares
language plpgsql stable set search_path = pg_catalog, pg_temp
-- Planned once: PostgreSQL takes a plan for any key for dearer, by the number of its prefixes, than a new one for each.
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
begin
  -- Each pattern is looked up by itself, in the order of the index: PostgreSQL may read all shares of the owner otherwise.
  return query
    select s.* from tensorage.patterns_of(key) p(pattern), lateral (
      select * from tensorage.shares o where o.user_id = owner and o.pattern = p.pattern order by o.reader offset 0) s
     where (s.expires_at is null or s.expires_at > now());
end
$$;

-- True if anybody else may use an array of the caller, or if it is somebody else's.
create or replace function tensorage.is_shared(d public.datasets) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return d.user_id is distinct from auth.uid() or exists (select from tensorage.shares_of(d.user_id, d.key));
end
$$;

-- Policies of the tables ---------------------------------------------------------------------------

drop policy if exists "own and shared datasets are visible" on public.datasets;
create policy "own and shared datasets are visible" on public.datasets for select to authenticated
  using ((select tensorage.is_user()) and (
    user_id = (select auth.uid())
    -- Asked for each row of somebody else: a list of all owners who share would be made for a single row, too.
    or (state = 'committed' and tensorage.may_use(user_id, key))));

drop policy if exists "blocks of own and shared datasets are visible" on public.tensors;
create policy "blocks of own and shared datasets are visible" on public.tensors for select to authenticated
  using ((select tensorage.is_user()) and (user_id = (select auth.uid()) or tensorage.may_read_rows_of(data_id)));

drop policy if exists "shards of own and shared datasets are visible" on public.shards;
create policy "shards of own and shared datasets are visible" on public.shards for select to authenticated
  using ((select tensorage.is_user()) and (user_id = (select auth.uid()) or tensorage.may_read_rows_of(data_id)));

-- Arrays that a function may use -------------------------------------------------------------------

-- Raises for an array that the caller may not write to: TS007 if they may read it, else the given error. Only called when the
-- caller may not: requests that succeed do not pay for it.
create or replace function tensorage.raise_not_writable(d public.datasets, code text, message text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if d.state = 'committed' and tensorage.may_use(d.user_id, d.key) then
    raise exception using errcode = 'TS007',
      message = format('%L of %s is shared with you for reading only', d.key, tensorage.name_of(d.user_id));
  end if;
  raise exception using errcode = code, message = raise_not_writable.message;
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

-- True if an array is what a client remembers, which did not look at the catalogue again: {"key": its key, "owner": an address
-- or the id of an account, null for the caller's own arrays, "shape": its shape}. True of anything if the client remembers
-- nothing. The key and the owner's address may lead to another array by now, and a selection means other elements in another
-- shape.
create or replace function tensorage.is_as_known(d public.datasets, known jsonb) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return known is null or coalesce(
    d.key = known ->> 'key' and to_jsonb(d.shape) = known -> 'shape'
    and case when known ->> 'owner' is null then d.user_id = tensorage.me()
             else d.user_id = any (tensorage.accounts(known ->> 'owner')) end, false);
end
$$;

-- The array that a reader opened, if the caller may read it and its elements are still the same, and if it is what the client
-- remembers. Every reading function checks by this and by nothing else: what it reads afterwards is found by the id that is
-- returned here. An array that the caller may not read gives the same error as one that does not exist.
create or replace function tensorage.readable(
  data_id bigint, version bigint, engine text default 'database', known jsonb default null)
returns public.datasets
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
begin
  -- By the id alone: only the primary key answers that, whatever PostgreSQL thinks of the size of the table.
  select * into d from public.datasets s where s.id = readable.data_id;
  if d.id is null or d.state <> 'committed' or (d.user_id = me or tensorage.is_shared_with_me(d.user_id, d.key)) is not true
     or (readable.version between d.stable_since and d.version) is not true or not tensorage.is_as_known(d, known) then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return tensorage.of_engine(d, engine);
end
$$;

-- True if the caller, who writes a staged dataset, may still do so: the array that it goes to may be somebody else's, who may
-- have ended the share.
create or replace function tensorage.may_go_on(d public.datasets) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  target public.datasets;
begin
  if d.user_id = auth.uid() then
    return true;
  end if;
  select * into target from public.datasets t where t.id = coalesce(d.append_to, d.assign_to);
  return coalesce(tensorage.is_shared_with_me(target.user_id, target.key, true), false);
end
$$;

-- True if the caller is writing a dataset: their own one, or one to an array that is shared with them for writing.
create or replace function tensorage.is_writing(d public.datasets) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce(d.writer = auth.uid() and d.state = 'staged' and d.expires_at > now() and tensorage.may_go_on(d), false);
end
$$;

-- Raises unless the caller may still write a staged dataset of theirs.
create or replace function tensorage.check_may_go_on(d public.datasets) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not tensorage.may_go_on(d) then
    raise exception using errcode = 'TS003', message = format('the array %L is not shared with you for writing any more', d.key);
  end if;
end
$$;

-- The array as a writer opened it, locked against other writers, if the caller may write to it.
create or replace function tensorage.assignable(
  data_id bigint, version bigint, engine text default 'database', known jsonb default null)
returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
  has_fill boolean;
begin
  -- Looked at before it is locked: a stranger keeps nobody waiting.
  select * into d from public.datasets s where s.id = assignable.data_id;
  if (d.user_id = me or tensorage.is_shared_with_me(d.user_id, d.key, true)) is not true then
    perform tensorage.raise_not_writable(d, 'TS003', 'the array has changed since it was opened');
  end if;
  has_fill := d.fill is not null;
  if has_fill then
    -- Many write to such an array, each to other blocks or shards. This lock keeps it from being resized, replaced or deleted.
    select * into d from public.datasets s where s.id = assignable.data_id for key share;
  else
    select * into d from public.datasets s where s.id = assignable.data_id for update;
  end if;
  -- It may have been renamed meanwhile, to a key that is not shared.
  if d.id is null or not tensorage.may_use(d.user_id, d.key, true) or d.state <> 'committed'
     or (d.fill is not null) <> has_fill or not tensorage.is_as_known(d, known)
     -- Elements that others have written meanwhile do not matter to a writer of other ones. Elsewhere, an earlier step of the
     -- same transaction may have changed the array: its version was looked at before the first one.
     or not (has_fill
             or tensorage.in_transaction() and coalesce(d.id = any (nullif(current_setting('tensorage.locked', true), '')::bigint[]), false)
             or coalesce(assignable.version between d.stable_since and d.version, false)) then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return tensorage.of_engine(d, engine);
end
$$;
