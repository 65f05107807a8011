-- tensorage: descriptions, names and attributes of arrays. Nothing here touches elements.

-- The description of a dataset that every function answers with.
create or replace function tensorage.describe(d public.datasets) returns json
language sql stable set search_path = pg_catalog, pg_temp as $$
  select json_build_object(
    'id', d.id, 'user_id', d.user_id, 'owner', tensorage.address_of(d.user_id), 'key', d.key, 'shape', d.shape, 'dtype', d.dtype,
    'chunk', d.block_size, 'engine', d.engine, 'is_shared', d.is_shared, 'attrs', d.attrs, 'dims', d.dims,
    'state', d.state, 'version', d.version, 'created_at', d.created_at, 'updated_at', d.updated_at,
    -- Text, because a number could change on its way through jsonb.
    'zarr', d.zarr::text)
$$;

-- The array under a key: the caller's own, or else the one that somebody shares under this key. `owner` is the address that
-- the owner's account has now. A new plan is made for each call: a plan from the time when the table was nearly empty, and
-- one index as good as another, would be kept while the table grows.
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
    -- Auth keeps addresses in lower case. Projects have an index on the address or on its lower case; both conditions are
    -- written down so that either index answers. It leaves out accounts of single sign-on, several of which may have one
    -- address: these are only looked for if there is no other account.
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
    -- Two statements, each of which one index answers: many users may share one key.
    if owner is null then
      shared := array(select d.id from public.datasets d
                       where d.key = tensorage_open.key and d.is_shared and d.state = 'committed' order by d.id limit 10);
    else
      -- `is_shared` is compared afterwards: the index of shared keys has an entry for each user who shares this key.
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

-- A dataset of the caller by its id, staged ones included.
create or replace function public.tensorage_dataset(data_id bigint) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  found public.datasets;
begin
  -- By the id alone: only the primary key answers that, whatever PostgreSQL thinks of the size of the table.
  select * into found from public.datasets d where d.id = data_id;
  if (found.user_id = me and (found.expires_at is null or found.expires_at > now())) is not true then
    raise exception using errcode = 'TS001', message = format('you have no dataset with id %s', data_id);
  end if;
  return tensorage.describe(found);
end
$$;

-- One page of the keys that the caller can open, in order, after a given one. The index gives the keys of a page in their
-- order, and no others. The settings keep PostgreSQL to it: it plans for the average user and for a prefix that it may not
-- know yet, and would fetch and sort all keys where it expects fewer of them than a page.
create or replace function public.tensorage_list(
  prefix text default '', after text default '', max_rows int default 1000) returns json
language sql stable security definer set search_path = pg_catalog, pg_temp
set enable_bitmapscan = off set enable_seqscan = off set enable_sort = off as $$
  -- Keys that begin with the prefix lie between the prefix and the prefix followed by as many of the greatest character as
  -- a key has room for; no other key lies there. starts_with() is not called as well: PostgreSQL expects few keys to pass
  -- it, and would look at all of them for a page.
  select coalesce(json_agg(k.key order by k.key), '[]') from (
    (select d.key from public.datasets d
      where d.user_id = (select tensorage.me()) and d.state = 'committed'
        and d.key >= prefix and d.key > after and d.key <= prefix || repeat(chr(1114111), 256)
        order by d.key limit least(max_rows, 1000))
    union
    (select d.key from public.datasets d
      where d.is_shared and d.state = 'committed'
        and d.key >= prefix and d.key > after and d.key <= prefix || repeat(chr(1114111), 256)
        order by d.key limit least(max_rows, 1000))
    order by 1 limit least(max_rows, 1000)) k
$$;

-- Number of keys that tensorage_list would list. Each half reads its own index: with "or", PostgreSQL would read the
-- datasets of all users.
create or replace function public.tensorage_count() returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
  select count(*) from (
    select d.key from public.datasets d where d.user_id = (select tensorage.me()) and d.state = 'committed'
    union
    select d.key from public.datasets d where d.is_shared and d.state = 'committed') k
$$;

-- Changes attributes of an array of the caller: those named by `removed` go, `attrs` are set; with `replace`, all others go,
-- too. With set_dims, changes the names of its axes as well.
create or replace function public.tensorage_annotate(
  data_id bigint, attrs jsonb default '{}', removed text[] default '{}', replace boolean default false,
  dims text[] default null, set_dims boolean default false) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  update public.datasets s
     set attrs = (case when tensorage_annotate.replace then '{}' else s.attrs end - removed) || tensorage_annotate.attrs,
         dims = case when set_dims then tensorage_annotate.dims else s.dims end,
         version = s.version + 1, updated_at = now()
   where s.id = tensorage_annotate.data_id and s.user_id = tensorage.me() and s.state = 'committed' returning * into d;
  if d.id is null then
    perform tensorage.raise_not_own(null, data_id, 'TS003', 'the array was replaced or deleted');
  end if;
  return tensorage.answer(null, tensorage.describe(d));
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
