-- tensorage: who may use whose arrays and files. The rule that reads the shares is in the file on access.

-- Shares that go with their arrays -----------------------------------------------------------------

-- True if the caller has a file of this path, or, if it ends with "/", below it.
create or replace function tensorage.has_files(path text) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  low text := auth.uid() || '/' || path;
begin
  -- Storage's own index of prefixes answers this; '0' comes right after '/'.
  return exists (
    select from storage.objects o
     where o.bucket_id = 'tensors' and o.name ~>=~ low
       and o.name ~<~ case when path like '%/' then left(low, -1) || '0' else low || chr(1) end
       and tensorage.folder_of_array(o.name) is null);
end
$$;

-- Makes requests that change shares of the caller wait for each other, so that no two of them lock the same shares in different
-- orders. Taken when the arrays are locked; what comes after it waits for nothing but totals.
create or replace function tensorage.lock_shares() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select pg_advisory_xact_lock(hashtextextended(format('tensorage shares of %s', auth.uid()), 0))
$$;

-- Adds or changes a share of the caller, who holds the lock of their shares.
create or replace function tensorage.put_share(pattern text, reader text, can_write boolean, expires_at timestamptz)
returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into tensorage.shares as s (user_id, pattern, reader, can_write, expires_at)
    values (auth.uid(), put_share.pattern, put_share.reader, put_share.can_write, put_share.expires_at)
    on conflict on constraint shares_user_id_pattern_reader_key do update
      set can_write = excluded.can_write, expires_at = excluded.expires_at
$$;

-- Ends the shares of arrays of the caller that are deleted: a later array of the same key is another one. Shares of prefixes stay.
-- Waits for other requests only if there are any: nobody adds one to an array that the caller has locked.
create or replace function tensorage.end_shares(keys text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  if exists (select from tensorage.shares s where s.user_id = auth.uid() and s.pattern = any (keys) and s.pattern not like '%/') then
    perform tensorage.lock_shares();
    delete from tensorage.shares s where s.user_id = auth.uid() and s.pattern = any (keys) and s.pattern not like '%/';
  end if;
end
$$;

-- Gives the shares of an array of the caller to its new key. Shares that have ended do not go along. A share that is there
-- stays if it allows as much in every way; else it is replaced: two of them together could allow more than either, such as to
-- write for ever, where one ends and the other is for reading.
create or replace function tensorage.move_shares(key text, new_key text) returns void
language sql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
  select tensorage.lock_shares();
  insert into tensorage.shares as t (user_id, pattern, reader, can_write, expires_at)
    select s.user_id, move_shares.new_key, s.reader, s.can_write, s.expires_at from tensorage.shares s
     where s.user_id = auth.uid() and s.pattern = move_shares.key and s.pattern not like '%/'
       and move_shares.new_key not like '%/' and (s.expires_at is null or s.expires_at > now())
    on conflict on constraint shares_user_id_pattern_reader_key do update
      set can_write = excluded.can_write, expires_at = excluded.expires_at
      where t.can_write < excluded.can_write
         or coalesce(t.expires_at, 'infinity') < coalesce(excluded.expires_at, 'infinity');
  delete from tensorage.shares s
   where s.user_id = auth.uid() and s.pattern = move_shares.key and s.pattern not like '%/';
$$;

-- The prefixes below a prefix that the caller shares, and that can be renamed with all arrays below it, while those are out of
-- sight. A prefix stays one. It stays where it is if there are other arrays or files below its new name: they were not shared.
create or replace function tensorage.movable_prefixes(prefix text, new_prefix text) returns text[]
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
  select array(
    select distinct s.pattern from tensorage.shares s, lateral (select new_prefix || substr(s.pattern, length(prefix) + 1)) n(name)
     where s.user_id = auth.uid() and s.pattern >= prefix and s.pattern <= tensorage.last_key(prefix)
       and s.pattern like '%/' and n.name like '%/'
       and not exists (select from public.datasets d
                        where d.user_id = auth.uid() and d.state = 'committed'
                          and d.key >= n.name collate "C" and d.key <= tensorage.last_key(n.name))
       and not tensorage.has_files(n.name))
$$;

-- Gives the shares of arrays of the caller, whose keys began with a prefix and begin with another one now, to their new keys, and
-- those of prefixes to their new names. No other share is touched: a file below the prefix stays where it is.
create or replace function tensorage.move_all_shares(prefix text, new_prefix text, keys text[], prefixes text[]) returns void
language sql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
  select tensorage.lock_shares();
  with gone as (
    delete from tensorage.shares s
     where s.user_id = auth.uid() and s.pattern = any (
       prefixes || array(select k.key from unnest(keys) k(key) where k.key not like '%/'))
    returning s.*)
  insert into tensorage.shares as t (user_id, pattern, reader, can_write, expires_at)
    select g.user_id, n.name, g.reader, g.can_write, g.expires_at
      from gone g, lateral (select new_prefix || substr(g.pattern, length(prefix) + 1)) n(name)
     where (g.expires_at is null or g.expires_at > now())
       -- A key that ends with "/" now would share all below it.
       and (g.pattern like '%/') = (n.name like '%/')
    on conflict on constraint shares_user_id_pattern_reader_key do update
      set can_write = excluded.can_write, expires_at = excluded.expires_at
      where t.can_write < excluded.can_write
         or coalesce(t.expires_at, 'infinity') < coalesce(excluded.expires_at, 'infinity');
$$;

-- Ends what others are writing to arrays of the caller that are not shared with them for writing any more: room that is
-- reserved for it would be taken from the caller for a day. Waits for nobody: a request that has such a dataset locked asks
-- the rule by itself.
create or replace function tensorage.end_writes_of_others() returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
begin
  update public.datasets d set expires_at = '-infinity'
   where d.id = any (array(
     select w.id from public.datasets w, lateral (
       select t.key from public.datasets t where t.id = coalesce(w.append_to, w.assign_to) offset 0) t
      where w.user_id = auth.uid() and w.state = 'staged' and w.expires_at > now() and w.writer <> w.user_id
        and not exists (select from tensorage.shares_of(w.user_id, t.key) s
                         where s.can_write and s.reader in ('', tensorage.address_of(w.writer)))
      for update of w skip locked));
  if found then
    perform tensorage.sweep(256, 1048576);
  end if;
end
$$;

-- Functions of the API -----------------------------------------------------------------------------

-- The description of a share that functions answer with. Without settings of its own, so that it becomes a part of the query
-- that calls it.
create or replace function tensorage.describe_share(s tensorage.shares, owner text) returns json
language sql stable as $$
  select json_build_object(
    'id', s.id, 'owner', owner, 'owner_id', s.user_id, 'key', s.pattern, 'reader', nullif(s.reader, ''),
    'write', s.can_write, 'expires_at', s.expires_at, 'created_at', s.created_at)
$$;

-- The readers of a request: addresses in lower case, or '' for every signed-in user. Raises for what is no address.
create or replace function tensorage.readers_of(readers text[]) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  reader text;
begin
  if readers is null then
    return array[''];
  elsif cardinality(readers) not between 1 and 1000 or array_position(readers, null) is not null then
    raise exception using errcode = 'TS006', message = format('%s addresses are not 1 to 1000', cardinality(readers));
  end if;
  foreach reader in array readers loop
    if reader !~ '^[^@[:space:][:cntrl:]]+@[^@[:space:][:cntrl:]]+$' or octet_length(reader) > 320 then
      raise exception using errcode = 'TS006', message = format('%L is no e-mail address', left(reader, 320)),
        hint = 'Give addresses such as reader@lab.org, or none for every signed-in user.';
    end if;
  end loop;
  return array(select distinct lower(r) from unnest(readers) r order by 1);
end
$$;

-- Live shares of the caller that let somebody use a key; with a prefix, also those that are below it; of all keys if it is null.
create or replace function public.tensorage_shares(
  key text default null, after bigint default 0, max_rows int default 1000) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off as $$
declare
  me uuid := tensorage.me();
  my_address text := tensorage.address_of(me);
begin
  return (
    select coalesce(json_agg(tensorage.describe_share(p, my_address) order by p.id), '[]')
      from (
        select * from (
          select s.* from tensorage.shares s where tensorage_shares.key is null and s.user_id = me
          union all
          select s.* from tensorage.shares_of(me, tensorage_shares.key) s
          union all
          select s.* from tensorage.shares s
           where s.user_id = me and tensorage_shares.key like '%/'
             and s.pattern > tensorage_shares.key and s.pattern <= tensorage.last_key(tensorage_shares.key)) u
         where u.id > after and (u.expires_at is null or u.expires_at > now())
         order by u.id limit least(max_rows, 1000)) p);
end
$$;

-- Lets readers, or every signed-in user (null), use an array of the caller, or all below a prefix that ends with "/": also
-- arrays and files that come later. Returns the shares of that key.
create or replace function public.tensorage_share(
  key text, readers text[] default null, can_write boolean default false, expires_at timestamptz default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  wanted text[] := tensorage.readers_of(readers);
  my_address text := tensorage.address_of(me);
  reader text;
begin
  if my_address = any (wanted) then
    raise exception using errcode = 'TS006', message = format('%s is your own address', my_address),
      hint = 'What is yours needs no share.';
  elsif expires_at <= now() or not isfinite(expires_at) then
    raise exception using errcode = 'TS006', message = format('a share that ends at %s has ended', expires_at),
      hint = 'Give a time in the future, or none.';
  end if;
  -- Held until the share is there: a request that deletes the array meanwhile ends this share as well, or has done so before.
  perform tensorage.lock_key(key);
  -- No array below a prefix is locked: the share outlives them, and each that was found gone would stay locked.
  if key like '%/' then
    perform from public.datasets d
      where d.user_id = me and d.state = 'committed' and d.key >= tensorage_share.key and d.key <= tensorage.last_key(tensorage_share.key)
      limit 1;
  else
    perform from public.datasets d
      where d.user_id = me and d.state = 'committed' and d.key = tensorage_share.key for share;
  end if;
  if not found and not tensorage.has_files(key) then
    raise exception using errcode = 'TS001', message = case
      when key like '%/' then format('you have no array and no file below %L', key) else format('you have no array %L', key) end;
  end if;
  perform tensorage.lock_shares();
  foreach reader in array wanted loop
    perform tensorage.put_share(key, reader, can_write, tensorage_share.expires_at);
    perform tensorage.note(me, 'shared', key, nullif(reader, ''));
  end loop;
  -- A share for writing may have become one for reading.
  perform tensorage.end_writes_of_others();
  perform tensorage.settle();
  return public.tensorage_shares(key);
end
$$;

-- Ends shares of a key or a prefix: those with readers, or all of them (null). Returns the shares that are left of it.
create or replace function public.tensorage_unshare(key text, readers text[] default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  me uuid := tensorage.me();
  wanted text[] := case when readers is not null then tensorage.readers_of(readers) end;
  ended text[];
  wider text;
begin
  perform tensorage.lock_shares();
  with gone as (
    delete from tensorage.shares s
     where s.user_id = me and s.pattern = tensorage_unshare.key and (wanted is null or s.reader = any (wanted))
    returning s.reader, s.expires_at)
  select array_agg(g.reader) into ended from gone g where g.expires_at is null or g.expires_at > now();
  if cardinality(wanted) > coalesce(cardinality(ended), 0) or ended is null then
    select s.pattern into wider from tensorage.shares_of(me, key) s
     where s.pattern <> key and (wanted is null or s.reader = any (wanted || array[''])) limit 1;
    raise exception using errcode = 'TS006',
      message = format('%L is not shared%s', key, coalesce(' with ' || (
        select string_agg(case w when '' then 'everybody' else w end, ', ') from unnest(wanted) w
         where w <> all (coalesce(ended, '{}'))), '')),
      hint = case when wider is null then 'Ask for its shares to see who may use it.'
                  else format('A share of %L lets them use it: end that one.', wider) end;
  end if;
  perform tensorage.note(me, 'unshared', key, nullif(e.reader, '')) from unnest(ended) e(reader);
  perform tensorage.end_writes_of_others();
  perform tensorage.settle(must_fit => false);
  return public.tensorage_shares(key);
end
$$;

-- A page of the live shares that others have given the caller, or every signed-in user.
create or replace function public.tensorage_shared_with_me(after bigint default 0, max_rows int default 1000) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  me uuid := tensorage.me();
begin
  return (
    select coalesce(json_agg(tensorage.describe_share(p, tensorage.address_of(p.user_id)) order by p.id), '[]')
      from (select s.* from unnest(tensorage.my_readers()) r(reader), lateral (
              select * from tensorage.shares o
               where o.reader = r.reader and o.id > after and o.user_id <> me
                 and (o.expires_at is null or o.expires_at > now())
               order by o.id limit least(max_rows, 1000)) s
             order by s.id limit least(max_rows, 1000)) p);
end
$$;

-- The id of the account of somebody who shares anything with the caller: the name of the folder of that account's files.
create or replace function public.tensorage_sharer(who text) returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := tensorage.me();
  found uuid;
begin
  select a.id into found from unnest(tensorage.accounts(who)) a(id)
   where a.id = me or exists (
     select from unnest(tensorage.my_readers()) r(reader), lateral (
       select from tensorage.shares s
        where s.reader = r.reader and s.user_id = a.id and (s.expires_at is null or s.expires_at > now()) limit 1) s)
   limit 1;
  if found is null then
    raise exception using errcode = 'TS001', message = format('%s shares nothing with you', who);
  end if;
  return found;
end
$$;
