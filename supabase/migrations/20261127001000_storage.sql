-- tensorage: the private bucket, in which each user has the folder that is named after their id, and no other.
--
-- Hosted Supabase's role `postgres` may add buckets, policies and triggers to the schema `storage`, though it does not own it.

insert into storage.buckets (id, name, public) values ('tensors', 'tensors', false) on conflict (id) do nothing;

-- Rights on objects --------------------------------------------------------------------------------

-- The user in whose folder an object of the bucket is, or null.
create or replace function tensorage.owner_of_object(object_name text) returns uuid
language sql immutable as $$
  select case when object_name ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/' then left(object_name, 36)::uuid end
$$;

-- The dataset that an object of an array was written for, or one without an id.
create or replace function tensorage.dataset_of_folder(object_name text) returns public.datasets
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  folder text := tensorage.folder_of_array(object_name);
  d public.datasets;
begin
  if folder ~ '^[1-9][0-9]{0,17}$' then
    -- By the id alone: only the primary key answers that.
    select * into d from public.datasets s where s.id = folder::bigint;
    if d.user_id is distinct from tensorage.owner_of_object(object_name) then
      d := null;
    end if;
  end if;
  return d;
end
$$;

-- True if an object may be made or written over: a file in the own folder, an object of an array while that is being
-- written. No late request, and nobody by hand, changes an array that can be read. Raises TS005 where the user has no room at
-- all. An object that is larger than the room is refused when it is there.
create or replace function tensorage.may_write_object(object_name text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  if not tensorage.is_user() then
    return false;
  elsif tensorage.folder_of_array(object_name) is null then
    if tensorage.owner_of_object(object_name) is distinct from auth.uid() then
      return false;
    end if;
    perform tensorage.check_room(auth.uid());
    return true;
  end if;
  d := tensorage.dataset_of_folder(object_name);
  return coalesce(d.engine = 'storage', false) and tensorage.is_writing(d);
end
$$;

-- True if an object may be deleted: a file in the own folder, or an object that is part of no array and was left by the
-- caller's own writing.
create or replace function tensorage.may_delete_object(object_name text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  me uuid := auth.uid();
  owner uuid := tensorage.owner_of_object(object_name);
  its_id bigint;
  d public.datasets;
begin
  if not tensorage.is_user() or owner is null then
    return false;
  end if;
  -- One look-up after the other, each by a unique index: a join may get another plan, and keep it.
  select s.data_id into its_id from public.shards s where s.name = object_name;
  if its_id is null then
    d := tensorage.dataset_of_folder(object_name);
    return owner = me or coalesce(d.writer = me and d.state = 'staged' and d.expires_at <= now(), false);
  end if;
  select * into d from public.datasets s where s.id = its_id;
  return coalesce(me in (d.user_id, d.writer) and d.state = 'staged' and d.expires_at <= now(), false);
end
$$;

-- True if an object is somebody else's, and the caller may read it: as a part of an array or a file that is shared, or since
-- the caller is writing it.
create or replace function tensorage.is_shared_object(object_name text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  owner uuid := tensorage.owner_of_object(object_name);
  its_id bigint;
begin
  if owner is null then
    return false;
  elsif tensorage.folder_of_array(object_name) is null then
    return tensorage.is_shared_with_me(owner, substr(object_name, 38));
  end if;
  select s.data_id into its_id from public.shards s where s.name = object_name;
  return coalesce(tensorage.may_read_rows_of(its_id), false) or tensorage.is_writing(tensorage.dataset_of_folder(object_name));
end
$$;

-- PostgreSQL asks these policies one after the other, the last name first, until one lets the row through: the own folder comes
-- before shares, which take several look-ups.
drop policy if exists "tensorage: read own folder" on storage.objects;
create policy "tensorage: read own folder" on storage.objects for select to authenticated
  using (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text
         and (select tensorage.is_user()));

drop policy if exists "tensorage: read a share" on storage.objects;
create policy "tensorage: read a share" on storage.objects for select to authenticated
  using (bucket_id = 'tensors' and (select tensorage.is_user()) and tensorage.is_shared_object(name)
         -- A signed URL stays good when the share ends, and whatever the file holds by then: nobody signs for others. Storage
         -- tells what it does.
         and coalesce(current_setting('storage.operation', true), '') not like '%object.sign%');

-- Storage deletes nothing that the caller does not see. Seen for that alone: a writer whose share has ended reads nothing.
drop policy if exists "tensorage: see what is to be deleted" on storage.objects;
create policy "tensorage: see what is to be deleted" on storage.objects for select to authenticated
  using (bucket_id = 'tensors' and coalesce(current_setting('storage.operation', true), '') like '%object.delete%'
         and tensorage.may_delete_object(name));

drop policy if exists "tensorage: add objects" on storage.objects;
create policy "tensorage: add objects" on storage.objects for insert to authenticated
  with check (bucket_id = 'tensors' and tensorage.may_write_object(name));

drop policy if exists "tensorage: change objects" on storage.objects;
create policy "tensorage: change objects" on storage.objects for update to authenticated
  using (bucket_id = 'tensors' and tensorage.may_write_object(name))
  with check (bucket_id = 'tensors' and tensorage.may_write_object(name));

drop policy if exists "tensorage: delete objects" on storage.objects;
create policy "tensorage: delete objects" on storage.objects for delete to authenticated
  using (bucket_id = 'tensors' and tensorage.may_delete_object(name));

-- Bytes of objects ---------------------------------------------------------------------------------

-- Notes that an object adds bytes to its owner's total, or takes them away.
create or replace function tensorage.move_object(object_name text, bytes bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  owner uuid := tensorage.owner_of_object(object_name);
  folder text := tensorage.folder_of_array(object_name);
begin
  if owner is not null and bytes <> 0 then
    if folder is null then
      perform tensorage.move(owner, -2, bytes);
    end if;
    perform tensorage.move(owner, case when folder ~ '^[1-9][0-9]{0,17}$' then folder::bigint else 0 end, bytes);
  end if;
end
$$;

-- Counts objects of the bucket. Storage has a transaction of its own for each upload, which waits for nothing after this:
-- an object that grows, or moves to the folder of another user, is settled at once, so that one that does not fit is refused.
-- Deletions, perhaps a thousand in one transaction, are settled at its end.
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
  if after > before or (
       tg_op = 'UPDATE' and tensorage.owner_of_object(new.name) is distinct from tensorage.owner_of_object(old.name)) then
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
