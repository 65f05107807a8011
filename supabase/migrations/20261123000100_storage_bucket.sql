-- The private bucket of tensorage: each user has the folder that is named after their id, and no other.
--
-- Runs as hosted Supabase's `postgres` role, which may add buckets and policies to the `storage` schema
-- though it does not own it.

-- The policies call it.
revoke all on function tensorage.is_user() from public, anon;
grant execute on function tensorage.is_user() to authenticated, service_role;

insert into storage.buckets (id, name, public) values ('tensors', 'tensors', false) on conflict (id) do nothing;

drop policy if exists "tensorage: read own folder" on storage.objects;
create policy "tensorage: read own folder" on storage.objects for select to authenticated
  using (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text
         and (select tensorage.is_user()));

drop policy if exists "tensorage: add to own folder" on storage.objects;
create policy "tensorage: add to own folder" on storage.objects for insert to authenticated
  with check (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text);

drop policy if exists "tensorage: change in own folder" on storage.objects;
create policy "tensorage: change in own folder" on storage.objects for update to authenticated
  using (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text)
  with check (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text);

drop policy if exists "tensorage: delete from own folder" on storage.objects;
create policy "tensorage: delete from own folder" on storage.objects for delete to authenticated
  using (bucket_id = 'tensors' and (storage.foldername(name))[1] = (select auth.uid())::text);

notify pgrst, 'reload schema';
