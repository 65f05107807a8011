-- tensorage: the caller, the policies of the tables, and look-ups that let a caller have an array or refuse it.

-- The caller ---------------------------------------------------------------------------------------

-- True if the token is that of an existing user: a deleted user may hold a valid token for an hour more.
-- Security definer: nobody else may read auth.users.
create or replace function tensorage.is_user() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exists (select from auth.users u where u.id = auth.uid() and u.deleted_at is null)
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

-- The address that a user's account has now. A token tells the address of the time when it was made.
create or replace function tensorage.address_of(user_id uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select u.email from auth.users u where u.id = address_of.user_id
$$;

-- Policies of the tables ---------------------------------------------------------------------------

drop policy if exists "own and shared datasets are visible" on public.datasets;
create policy "own and shared datasets are visible" on public.datasets for select to authenticated
  using ((select tensorage.is_user()) and (user_id = (select auth.uid()) or (is_shared and state = 'committed')));

drop policy if exists "blocks of own and shared datasets are visible" on public.tensors;
create policy "blocks of own and shared datasets are visible" on public.tensors for select to authenticated
  using ((select tensorage.is_user()) and (
    user_id = (select auth.uid())
    -- Only reached for somebody else's blocks. "offset 0" makes PostgreSQL look up the dataset of each: it would read all
    -- shared datasets of the project for a single block otherwise.
    or exists (select from public.datasets d where d.id = data_id and d.is_shared and d.state = 'committed' offset 0)
  ));

drop policy if exists "shards of own and shared datasets are visible" on public.shards;
create policy "shards of own and shared datasets are visible" on public.shards for select to authenticated
  using ((select tensorage.is_user()) and (
    user_id = (select auth.uid())
    -- "offset 0" for the same reason as above.
    or exists (select from public.datasets d where d.id = data_id and d.is_shared and d.state = 'committed' offset 0)
  ));

-- Arrays that a function may use -------------------------------------------------------------------

-- Raises for an array that the caller does not have: TS007 if somebody else shares one of this key (or, without a key, of
-- this id), else the given error. Only called when a look-up of the caller's own array has failed: requests that succeed do
-- not pay for this one.
create or replace function tensorage.raise_not_own(key text, data_id bigint, code text, message text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  shared_key text;
begin
  -- Two statements, each of which one index answers.
  if key is not null then
    select d.key into shared_key from public.datasets d
     where d.key = raise_not_own.key and d.is_shared and d.state = 'committed' limit 1;
  else
    select d.key into shared_key from public.datasets d
     where d.id = raise_not_own.data_id and d.is_shared and d.state = 'committed';
  end if;
  if shared_key is not null then
    raise exception using errcode = 'TS007', message = format('the array %L belongs to somebody else', shared_key);
  end if;
  raise exception using errcode = code, message = raise_not_own.message;
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

-- The array that a reader opened, if the caller may read it and its elements are still the same. Every reading function
-- checks by this and by nothing else: what it reads afterwards is found by the id that is returned here. An array that the
-- caller may not read gives the same error as one that does not exist.
create or replace function tensorage.readable(data_id bigint, version bigint, engine text default 'database')
returns public.datasets
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
begin
  -- By the id alone: only the primary key answers that, whatever PostgreSQL thinks of the size of the table.
  select * into d from public.datasets s where s.id = readable.data_id;
  if d.id is null or d.state <> 'committed' or (d.user_id = me or d.is_shared) is not true
     or (readable.version between d.stable_since and d.version) is not true then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return tensorage.of_engine(d, engine);
end
$$;

-- The caller's array as a writer opened it, locked against other writers.
create or replace function tensorage.assignable(data_id bigint, version bigint, engine text default 'database')
returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  select * into d from public.datasets s where s.id = assignable.data_id and s.user_id = tensorage.me() for update;
  if d.id is null then
    perform tensorage.raise_not_own(null, data_id, 'TS003', 'the array has changed since it was opened');
  elsif d.state <> 'committed' or (assignable.version between d.stable_since and d.version) is not true then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return tensorage.of_engine(d, engine);
end
$$;
