-- tensorage: the private bucket, in which each user has the folder that is named after their id, and no other.
--
-- Hosted Supabase's role `postgres` may add buckets, policies and triggers to the schema `storage`, though it does not own it.

insert into storage.buckets (id, name, public) values ('tensors', 'tensors', false) on conflict (id) do nothing;

-- Rights on objects --------------------------------------------------------------------------------

-- The folder of an object, inside the user's folder, if it is one of an array. Folders that are named by a number hold
-- arrays, all others files.
create or replace function tensorage.folder_of_array(object_name text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when f.parts[2] ~ '^[0-9]+$' and cardinality(f.parts) > 2 then f.parts[2] end
    from (select string_to_array(object_name, '/') as parts) f
$$;

-- True if an object may be made or written over: a file always, an object of an array while that is being written. No late
-- request, and nobody by hand, changes an array that can be read. Raises TS005 where the user has no room at all. An object
-- that is larger than the room is refused when it is there.
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
  -- By the id alone: only the primary key answers that.
  return coalesce((
    select d.user_id = (select auth.uid()) and d.engine = 'storage' and d.state = 'staged' and d.expires_at > now()
      from public.datasets d where d.id = folder::bigint), false);
end
$$;

-- True if an object may be deleted: it is not part of an array.
create or replace function tensorage.may_delete_object(object_name text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  -- One subquery inside the other, each by a unique index: a join may get another plan, and keep it.
  select not coalesce((
    select d.state = 'committed' or d.expires_at > now() from public.datasets d
     where d.id = (select s.data_id from public.shards s where s.name = object_name)), false)
$$;

-- True if an object is part of an array that is shared with every signed-in user.
create or replace function tensorage.is_shared_object(object_name text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((
    select d.is_shared and d.state = 'committed' from public.datasets d
     where d.id = (select s.data_id from public.shards s where s.name = object_name)), false)
$$;

drop policy if exists "tensorage: read own folder" on storage.objects;
create policy "tensorage: read own folder" on storage.objects for select to authenticated
  using (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text
         and (select tensorage.is_user()));

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

-- Bytes of objects ---------------------------------------------------------------------------------

-- The user in whose folder an object of the bucket is, or null.
create or replace function tensorage.owner_of_object(object_name text) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when object_name ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/' then left(object_name, 36)::uuid end
$$;

-- Notes that an object adds bytes to its owner's total, or takes them away.
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

-- Counts objects of the bucket. Storage has a transaction of its own for each upload, which waits for nothing after this:
-- an object that grows is settled at once, so that one that does not fit is refused. Deletions, perhaps a thousand in one
-- transaction, are settled at its end.
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

create or replace trigger tensorage_count
  after insert or delete or update of bucket_id, name, metadata, user_metadata on storage.objects
  for each row execute function tensorage.count_object();

-- Totals of users whose folders hold objects from before there were totals: of a bucket that an earlier schema has left.
select tensorage.recount(u.id) from auth.users u
 where not exists (select from tensorage.usage t where t.user_id = u.id)
   and exists (select from storage.objects o where o.bucket_id = 'tensors' and starts_with(o.name, u.id || '/'));
