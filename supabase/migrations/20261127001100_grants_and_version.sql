-- tensorage: rights of each role, and the version of the schema. The last file: a project that has the version has all.

-- Number of this schema. It goes up with each change that a client must know of. Not immutable: a plan that was cached with
-- its answer in it would give the answer to those who may not ask.
create or replace function public.tensorage_version() returns int
language plpgsql stable set search_path = pg_catalog, pg_temp as $$ begin return 7; end $$;
comment on function public.tensorage_version() is 'Version of this schema. A client works with exactly one.';

-- Projects that were made before 2026-10-30 give rights on all that is made in `public` to the roles of the API: revoked first.
revoke all on schema tensorage from public, anon;
revoke all on public.datasets, public.tensors, public.shards from public, anon, authenticated;
revoke all on sequence public.datasets_id_seq from public, anon, authenticated;
revoke all on tensorage.shares, tensorage.audit, tensorage.operations, tensorage.quotas, tensorage.settings, tensorage.usage, tensorage.reservations,
  tensorage.stagings, tensorage.written from public, anon, authenticated;

grant usage on schema tensorage to authenticated, service_role;
grant select on public.datasets, public.tensors, public.shards to authenticated;
grant select, insert, update, delete on public.datasets, public.tensors, public.shards to service_role;
grant select, insert, update, delete on tensorage.shares, tensorage.operations, tensorage.quotas, tensorage.settings to service_role;
-- Totals and reservations follow from the other tables, and records of who did what are for good: nobody writes them.
grant select on tensorage.audit, tensorage.usage, tensorage.reservations, tensorage.stagings, tensorage.written
  to service_role;

do $$
declare
  f regprocedure;
begin
  -- PostgreSQL lets everybody execute a new function.
  for f in select p.oid from pg_proc p
            where p.pronamespace = 'tensorage'::regnamespace
               or (p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage_')) loop
    execute format('revoke all on function %s from public, anon, authenticated', f);
  end loop;
  -- The functions of the API; those that policies call; and those that columns, checks and indexes of the tables call, for
  -- service_role, which may write the tables.
  for f in select p.oid from pg_proc p
            where (p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage_'))
               or (p.pronamespace = 'tensorage'::regnamespace
                   and p.proname in ('elements', 'itemsize', 'record_size', 'is_ragged', 'ragged_unit', 'is_plain_name', 'tag', 'may_write_object', 'may_delete_object',
                                     'is_shared_object', 'is_user', 'may_use', 'may_read_rows_of')) loop
    execute format('grant execute on function %s to authenticated, service_role', f);
  end loop;
  -- Quotas are set, and those of all users are seen, with the service key alone.
  revoke all on function public.tensorage_set_quota(text, bigint, bigint) from authenticated;
  revoke all on function public.tensorage_quotas(text, uuid, int) from authenticated;
end
$$;

notify pgrst, 'reload schema';
