-- tensorage: a look at the project from within, for `tensorage doctor`. The client compares the answer with a fresh project's.

-- The project as it is: versions, rights of the roles of the API on all that is tensorage's, row-level security, policies,
-- triggers, functions, the bucket, time-outs and the clock. Nothing in the answer is secret: it has no row of any user, and the
-- names in it are in these files. Security definer: the role of a signed-in user may not look at the bucket.
create or replace function public.tensorage_doctor() returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not tensorage.is_user() and auth.role() is distinct from 'service_role' then
    raise exception using errcode = '42501', message = 'only a signed-in user, or the service key, can do this';
  end if;
  return (
    with api_roles(id, name) as (
      select r.oid, r.rolname::text from pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role')
      union all select 0, 'public'
    ), our_tables as (
      select c.oid, c.oid::regclass::text as name, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity
        from pg_class c
       where c.relkind in ('r', 'p') and (c.relnamespace = 'tensorage'::regnamespace
             or (c.relnamespace = 'public'::regnamespace and c.relname in ('datasets', 'tensors', 'shards')))
    ), looked_at as (
      select t.oid, t.name, t.relrowsecurity, t.relforcerowsecurity from our_tables t
      union all
      select c.oid, c.oid::regclass::text, c.relrowsecurity, c.relforcerowsecurity
        from pg_class c where c.oid = 'storage.objects'::regclass
    ), our_functions as (
      select p.oid, p.oid::regprocedure::text as signature, p.proowner, p.proacl, n.nspname || '.' || p.proname as name,
             -- Without carriage returns, which an editor may have added to a script that was pasted.
             md5(replace(p.prosrc, chr(13), '')) as body
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = 'tensorage' or (n.nspname = 'public' and starts_with(p.proname, 'tensorage_'))
    ), rights(holder, privilege, thing) as (
      select a.grantee, a.privilege_type, 'schema tensorage'
        from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a where n.nspname = 'tensorage'
      union all
      select a.grantee, a.privilege_type, 'table ' || t.name
        from our_tables t, aclexplode(coalesce(t.relacl, acldefault('r', t.relowner))) a
      union all
      select a.grantee, a.privilege_type || ' (' || quote_ident(c.attname) || ')', 'table ' || t.name
        from our_tables t join pg_attribute c on c.attrelid = t.oid, aclexplode(c.attacl) a
      union all
      select a.grantee, a.privilege_type, 'sequence ' || s.oid::regclass
        from our_tables t join pg_depend d on d.refobjid = t.oid and d.refclassid = 'pg_class'::regclass
             join pg_class s on s.oid = d.objid and d.classid = 'pg_class'::regclass and s.relkind = 'S',
             aclexplode(coalesce(s.relacl, acldefault('s', s.relowner))) a
      union all
      select a.grantee, a.privilege_type, 'function ' || f.signature
        from our_functions f, aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a
    )
    select json_build_object(
      'schema_version', public.tensorage_version(),
      'postgres_version', current_setting('server_version'),
      'postgres_number', current_setting('server_version_num')::int,
      'clock', extract(epoch from clock_timestamp()),
      'role', auth.role(),
      'statement_timeout_ms', (select s.setting::bigint from pg_settings s where s.name = 'statement_timeout'),
      'statement_timeouts', (
        select coalesce(json_object_agg(r.rolname, split_part(o.setting, '=', 2)), '{}')
          from pg_roles r, unnest(r.rolconfig) o(setting)
         where r.rolname in ('anon', 'authenticated', 'authenticator', 'service_role')
           and starts_with(o.setting, 'statement_timeout=')),
      'extensions', (
        select json_object_agg(e.extname, e.extversion) from pg_extension e
         where e.extname in ('plpgsql', 'pg_graphql', 'pgaudit', 'pg_cron', 'pg_net')),
      'row_security', (
        select json_object_agg(l.name, case when not l.relrowsecurity then 'off'
                                            when l.relforcerowsecurity then 'forced' else 'on' end order by l.name)
          from looked_at l),
      'policies', (
        -- Storage's table may have others: an application has its own ones for other buckets.
        select coalesce(json_agg(json_build_array(l.name, p.polname, format('%sfor %s to %s, %s',
                 case when p.polpermissive then '' else 'restrictive ' end,
                 case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete'
                               else 'all' end,
                 (select string_agg(coalesce(r.rolname::text, 'public'), ', ' order by r.rolname)
                    from unnest(p.polroles) m(id) left join pg_roles r on r.oid = m.id),
                 md5(concat_ws(' with check ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)))))
                 order by l.name, p.polname), '[]')
          from looked_at l join pg_policy p on p.polrelid = l.oid
         where l.name <> 'storage.objects' or starts_with(p.polname, 'tensorage: ')),
      'open_storage_policies', (
        -- Policies of others that may let their users into the bucket, since they look at none.
        select count(*) from pg_policy p
         where p.polrelid = 'storage.objects'::regclass and p.polpermissive and not starts_with(p.polname, 'tensorage: ')
           and concat(pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) not like '%bucket_id%'),
      'triggers', (
        select coalesce(json_agg(json_build_array(l.name, t.tgname, case t.tgenabled when 'O' then 'on' when 'D' then 'off'
                                                                                                else 'changed' end)
                                 order by l.name, t.tgname), '[]')
          from looked_at l join pg_trigger t on t.tgrelid = l.oid
         where not t.tgisinternal and starts_with(t.tgname, 'tensorage_')),
      'rights', (
        select coalesce(json_agg(json_build_array(a.name, r.privilege, r.thing) order by a.name, r.thing, r.privilege), '[]')
          from rights r join api_roles a on a.id = r.holder),
      'functions', (select coalesce(json_agg(json_build_array(f.name, f.signature, f.body) order by f.signature), '[]')
                      from our_functions f),
      'bucket', (
        -- By the names of the columns, of which Storage has more with each release.
        select json_build_object(
                 'public', b.public, 'file_size_limit', to_jsonb(b) -> 'file_size_limit',
                 'allowed_mime_types', to_jsonb(b) -> 'allowed_mime_types', 'versioning', to_jsonb(b) -> 'versioning_status')
          from storage.buckets b where b.id = 'tensors'),
      'knows_versioning', exists (
        select from pg_attribute c
         where c.attrelid = 'storage.buckets'::regclass and c.attname = 'versioning_status' and not c.attisdropped),
      'shares_with_everybody', exists (
        select from tensorage.shares s where s.reader = '' and (s.expires_at is null or s.expires_at > now())),
      'shares_with_addresses', exists (
        select from tensorage.shares s where s.reader > '' and (s.expires_at is null or s.expires_at > now()))));
end
$$;
