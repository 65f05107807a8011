-- tensorage: descriptions, names and attributes of arrays. Nothing here touches elements.

-- The description of a dataset, for callers who have its owner's address and know whether it is shared; with the shares of it
-- if the owner asks for them, and with the version of the schema for a client that does not know it yet. Without settings of
-- its own, so that it becomes a part of the query that calls it.
create or replace function tensorage.describe_as(
  d public.datasets, owner text, is_shared boolean, shares json, schema int default null) returns json
language sql stable as $$
  select json_build_object(
    'id', d.id, 'user_id', d.user_id, 'owner', owner, 'key', d.key, 'shape', d.shape, 'dtype', d.dtype, 'chunk', d.block_size,
    'engine', d.engine, 'is_shared', is_shared, 'shares', shares, 'stored_bytes', d.stored_bytes, 'attrs', d.attrs, 'dims', d.dims,
    'state', d.state, 'version', d.version, 'created_at', d.created_at, 'updated_at', d.updated_at,
    'fill', encode(d.fill, 'base64'), 'schema', schema,
    -- Text, because a number could change on its way through jsonb.
    'zarr', d.zarr::text)
$$;

-- The description of a dataset that every function answers with.
create or replace function tensorage.describe(d public.datasets) returns json
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return tensorage.describe_as(d, tensorage.address_of(d.user_id), tensorage.is_shared(d), null, public.tensorage_version());
end
$$;

-- Raises for an array that the caller cannot open: the same for one that is not there and one that is not shared.
create or replace function tensorage.raise_missing(key text, owner text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception using errcode = 'TS001', message = case
    when owner is null then format('you have no array %L', key)
    else format('%s shares no array %L with you', owner, key) end;
end
$$;

-- The committed array under a key: the caller's own one, or with `owner`, an address or the id of an account, that of somebody
-- who shares it. Without an id where there is none. One index alone answers: a plan from the time when the table was nearly
-- empty is as good when it has grown.
create or replace function tensorage.find(key text, owner text, to_write boolean default false) returns public.datasets
language plpgsql stable set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  whose uuid := me;
  d public.datasets;
begin
  if owner is not null then
    -- Several accounts of single sign-on may have one address: one that shares the array is meant.
    select w.id into whose from unnest(tensorage.accounts(find.owner)) w(id) where tensorage.may_use(w.id, find.key) limit 1;
    if whose is null then
      return null;
    end if;
  end if;
  select * into d from public.datasets s where s.user_id = whose and s.key = find.key and s.state = 'committed';
  if to_write and d.id is not null and not tensorage.may_use(d.user_id, d.key, true) then
    perform tensorage.raise_not_writable(d, 'TS003', 'the array has changed since it was opened');
  end if;
  return d;
end
$$;

-- The array under a key of the caller, or of the owner who shares it.
create or replace function public.tensorage_open(key text, owner text default null) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  found public.datasets := tensorage.find(key, owner);
begin
  if found.id is null then
    perform tensorage.raise_missing(key, owner);
  end if;
  return tensorage.describe(found);
end
$$;

-- A dataset of the caller by its id, staged ones included, or one by which the caller is writing to an array of somebody else.
create or replace function public.tensorage_dataset(data_id bigint) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  found public.datasets;
begin
  -- By the id alone: only the primary key answers that, whatever PostgreSQL thinks of the size of the table.
  select * into found from public.datasets d where d.id = data_id;
  if ((found.user_id = me and (found.expires_at is null or found.expires_at > now()))
      or tensorage.is_writing(found)) is not true then
    raise exception using errcode = 'TS001', message = format('you have no dataset with id %s', data_id);
  end if;
  return tensorage.describe(found);
end
$$;

-- The end of the range of keys that begin with a prefix: no key has room for more characters.
create or replace function tensorage.last_key(prefix text) returns text
language sql immutable as $$ select prefix || repeat(chr(1114111), 256) $$;

-- One page of the arrays of the caller whose keys begin with a prefix, in order, after a given key. The index gives the keys of
-- a page in their order, and no others. The settings keep PostgreSQL to it: it plans for the average user and for a prefix that
-- it may not know yet, and would fetch and sort all keys where it expects fewer of them than a page.
create or replace function tensorage.own_keys(prefix text, after text, max_rows int) returns setof text
language sql stable set search_path = pg_catalog, pg_temp
set enable_bitmapscan = off set enable_seqscan = off set enable_sort = off as $$
  -- starts_with() is not called as well: PostgreSQL expects few keys to pass it, and would look at all of them for a page.
  select d.key from public.datasets d
   where d.user_id = auth.uid() and d.state = 'committed'
     and d.key >= prefix and d.key > after and d.key <= tensorage.last_key(prefix)
   order by d.key limit max_rows
$$;

-- The same of the arrays that accounts share with the caller. Each share stands for a range of keys, of which the index gives
-- the first: what is looked at grows with the shares and the page, and not with the arrays.
create or replace function tensorage.shared_keys(whose uuid[], prefix text, after text, max_rows int) returns setof text
language sql stable set search_path = pg_catalog, pg_temp
set enable_bitmapscan = off set enable_seqscan = off as $$
  select distinct k.key
    from tensorage.shares s, lateral (
      select d.key from public.datasets d
       where d.user_id = s.user_id and d.state = 'committed'
         and d.key >= s.pattern and d.key >= prefix and d.key > after and d.key <= tensorage.last_key(prefix)
         and d.key <= case when s.pattern like '%/' then tensorage.last_key(s.pattern) else s.pattern end
       order by d.key limit max_rows) k
   where s.user_id = any (whose) and s.reader = any (tensorage.my_readers()) and (s.expires_at is null or s.expires_at > now())
   order by 1 limit max_rows
$$;

-- The accounts of an owner, or null for the caller's own arrays, also if the caller is named.
create or replace function tensorage.whose(owner text) returns uuid[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  accounts uuid[] := case when owner is not null then tensorage.accounts(owner) end;
begin
  return case when me = any (accounts) then null else accounts end;
end
$$;

-- One page of keys of the caller, or of an owner who shares them with the caller.
create or replace function public.tensorage_list(
  prefix text default '', after text default '', max_rows int default 1000, owner text default null) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  whose uuid[] := tensorage.whose(owner);
begin
  if whose is null then
    return (select coalesce(json_agg(k.key), '[]') from tensorage.own_keys(prefix, after, least(max_rows, 1000)) k(key));
  end if;
  return (select coalesce(json_agg(k.key), '[]')
            from tensorage.shared_keys(whose, prefix, after, least(max_rows, 1000)) k(key));
end
$$;

-- Number of keys that tensorage_list would list.
create or replace function public.tensorage_count(owner text default null, prefix text default '') returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  whose uuid[] := tensorage.whose(owner);
begin
  if whose is null then
    return (select count(*) from public.datasets d
             where d.user_id = me and d.state = 'committed' and d.key >= prefix and d.key <= tensorage.last_key(prefix));
  end if;
  return (select count(*) from tensorage.shared_keys(whose, prefix, '', 2147483647));
end
$$;

-- The regular expression of a glob: "*" stands for any characters but "/", "**" for any, "?" for one but "/".
create or replace function tensorage.regex_of_glob(glob text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select '^' || replace(replace(replace(
           regexp_replace(regexp_replace(regexp_replace(glob, '([.^$+(){}|\\\[\]])', '\\\1', 'g'), '\*\*+', chr(1), 'g'),
                          chr(1) || '+', chr(1), 'g'),
           '*', '[^/]*'), chr(1), '.*'), '?', '[^/]') || '$'
$$;

-- The first arrays of the caller that have attributes, by the index of attributes, in the order of their keys. Others'
-- are left out: the time that it takes would tell how many arrays have them, also of those that are not shared.
create or replace function tensorage.ids_with_attrs(
  attrs jsonb, prefix text, after text, regex text, max_rows int) returns setof bigint
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_indexscan = off as $$
  -- The conditions of the inner query are those of the index of attributes, and of no other one.
  select d.id from (
    select s.id, s.key from public.datasets s
     where tensorage.tag(s.user_id, s.attrs) @> tensorage.tag(auth.uid(), ids_with_attrs.attrs) and s.state = 'committed'
       and s.attrs <> '{}' offset 0) d
   where d.key >= prefix and d.key > after and d.key <= tensorage.last_key(prefix) and (regex is null or d.key ~ regex)
   order by d.key limit max_rows
$$;

-- One page of descriptions of arrays of the caller, or of an owner who shares them: those whose keys begin with a prefix, fit a
-- glob, and have attributes. A page ends before it has 8 MiB of attributes and metadata. The owner gets the shares of each.
-- {"entries": [...], "after": where the next page begins, null at the end, "usage": that of the owner, with the first page}
create or replace function public.tensorage_catalogue(
  prefix text default '', glob text default null, attrs jsonb default null, owner text default null, after text default '',
  max_rows int default 1000) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set plan_cache_mode = force_custom_plan as $$
declare
  me uuid := tensorage.me();
  others uuid[] := tensorage.whose(owner);
  whose uuid[] := coalesce(others, array[me]);
  regex text := tensorage.regex_of_glob(glob);
  wanted int := least(max_rows, 1000);
  has_attrs boolean := coalesce(attrs, '{}') <> '{}';
  ids bigint[];
  keys text[];
  total int;
  has_more boolean := true;
  answer json;
  last text;
  -- A client that shows a store shows the quota beside it, by the one request.
  used json := case when others is null and after = '' then public.tensorage_usage() end;
begin
  if attrs is not null and jsonb_typeof(attrs) <> 'object' then
    raise exception using errcode = 'TS006', message = 'attributes to look for are an object';
  elsif has_attrs and others is null then
    ids := array(select tensorage.ids_with_attrs(tensorage_catalogue.attrs, prefix, after, regex, wanted));
  else
    loop
      keys := array(select k from (
        select tensorage.own_keys(prefix, after, 1001) as k where others is null
        union all select tensorage.shared_keys(whose, prefix, after, 1001) where others is not null) s);
      -- One key more than a page has: with 1,000 arrays, there is no second page to ask for.
      has_more := cardinality(keys) > 1000;
      keys := keys[:1000];
      exit when cardinality(keys) = 0;
      ids := coalesce(ids, '{}') || array(
        select d.id from unnest(keys) k(key), unnest(whose) w(id), lateral (
          select * from public.datasets s where s.user_id = w.id and s.key = k.key and s.state = 'committed' offset 0) d
         where (regex is null or d.key ~ regex) and (not has_attrs or d.attrs @> tensorage_catalogue.attrs)
           and (others is null or tensorage.may_use(d.user_id, d.key))
         order by d.key);
      -- Bounded, since a glob or attributes may fit few of many keys: the next request goes on behind the last key that was looked at.
      after := keys[cardinality(keys)];
      total := coalesce(total, 0) + cardinality(keys);
      exit when (regex is null and not has_attrs) or cardinality(ids) >= wanted or total >= 20000 or not has_more;
    end loop;
    has_more := has_more or cardinality(ids) > wanted;
    ids := ids[:wanted];
  end if;
  with sized as (
    select q.id, sum(octet_length(q.attrs::text) + coalesce(octet_length(q.zarr::text), 0)) over (order by q.key) as bytes,
           row_number() over (order by q.key) as number
      from public.datasets q where q.id = any (ids)),
  page as (
    select d.dataset, b.id, (d.dataset).key, o.address
      from sized b, lateral (select e as dataset from public.datasets e where e.id = b.id offset 0) d,
           (select w.id, tensorage.address_of(w.id) as address from unnest(whose) w(id) offset 0) o
     where o.id = (d.dataset).user_id and (b.bytes <= 8388608 or b.number = 1)),
  shared as (
    -- The same as tensorage.shares_of, which would be called for each array.
    select p.id, json_agg(tensorage.describe_share(o.share, p.address) order by (o.share).id) as shares
      from page p, tensorage.patterns_of(p.key) t(pattern), lateral (
        select s as share from tensorage.shares s
         where s.user_id = (p.dataset).user_id and s.pattern = t.pattern order by s.reader offset 0) o
     where (p.dataset).user_id = me and ((o.share).expires_at is null or (o.share).expires_at > now())
     group by p.id)
  select json_agg(tensorage.describe_as(p.dataset, p.address, others is not null or s.id is not null,
                                        case when (p.dataset).user_id = me then coalesce(s.shares, '[]') end) order by p.key), max(p.key)
    into answer, last from page p left join shared s on s.id = p.id;
  return json_build_object('entries', coalesce(answer, '[]'), 'usage', used, 'after', case
    when (has_more and cardinality(ids) >= wanted) or json_array_length(answer) < cardinality(ids) then last
    when has_more and total >= 20000 then after end);
exception when invalid_regular_expression then
  raise exception using errcode = 'TS006', message = format('the glob %L is too complex', left(glob, 200));
end
$$;

-- Changes attributes of an array that the caller may write to: those named by `removed` go, `attrs` are set; with `replace`,
-- all others go, too. With set_dims, changes the names of its axes as well.
create or replace function public.tensorage_annotate(
  data_id bigint, attrs jsonb default '{}', removed text[] default '{}', replace boolean default false,
  dims text[] default null, set_dims boolean default false) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := tensorage.me();
  d public.datasets;
begin
  select * into d from public.datasets s where s.id = tensorage_annotate.data_id;
  if (d.user_id = me or tensorage.is_shared_with_me(d.user_id, d.key, true)) is not true then
    perform tensorage.raise_not_writable(d, 'TS003', 'the array was replaced or deleted');
  end if;
  update public.datasets s
     set attrs = (case when tensorage_annotate.replace then '{}' else s.attrs end - removed) || tensorage_annotate.attrs,
         dims = case when set_dims then tensorage_annotate.dims else s.dims end,
         version = s.version + 1, updated_at = now()
   where s.id = d.id and s.state = 'committed' returning * into d;
  if d.id is null then
    raise exception using errcode = 'TS003', message = 'the array was replaced or deleted';
  end if;
  perform tensorage.check_still_writable(d);
  perform tensorage.note_change(d);
  return tensorage.answer(null, tensorage.describe(d));
end
$$;
