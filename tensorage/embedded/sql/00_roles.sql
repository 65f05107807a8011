-- The roles and schemas of a hosted Supabase project, in a new cluster whose superuser is supabase_admin.
-- Runs once, as that superuser, inside one transaction. Passwords are set afterwards.

-- Roles of requests. They own nothing, and inherit nothing.
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;

-- Role that the REST and Storage APIs log in as. Its only right is to take one of the three roles above.
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;

-- Owners of the schemas of Auth and Storage.
create role supabase_auth_admin login noinherit createrole;
create role supabase_storage_admin login noinherit createrole;

-- Role of the project's owner, with all rights but those of a superuser.
create role postgres login createdb createrole bypassrls;
grant anon, authenticated, service_role to postgres;
-- On a hosted project `postgres` may create policies on storage.objects. It used to have that by this
-- membership; today an extension gives it, which a plain PostgreSQL does not have.
grant supabase_storage_admin to postgres;

-- Timeouts as on hosted Supabase, which end runaway requests.
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;

-- `public` belongs to pg_database_owner, so that this makes it the property of `postgres`, too.
alter database postgres owner to postgres;
grant usage on schema public to anon, authenticated, service_role;

create schema extensions authorization postgres;
grant usage on schema extensions to anon, authenticated, service_role;
