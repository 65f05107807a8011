-- The server's own functions, made anew at each start: an older data folder has what this server asks for.
-- Only the authenticator may call them, who gains nothing by them: it may take each caller's role anyway.

create schema if not exists embedded;
grant usage on schema embedded to authenticator;

-- The row of an object, if the caller may see it: a whole transaction of the caller in one statement. Begin, settings,
-- look-up and commit by themselves are three round trips, which take twice the time.
-- Not a function in SQL: that would be planned, and with it the policies chosen, in the authenticator's role.
create or replace function embedded.find_object(
    caller_role text, claims text, path text, operation text, in_bucket text, object_name text)
returns table (
    id uuid, name text, bucket_id text, version text, metadata jsonb, user_metadata jsonb, created_at timestamptz,
    updated_at timestamptz)
language plpgsql as $$
begin
    -- For this transaction, which ends with the statement. The role comes last, and nothing before the look-up runs in it.
    perform set_config('transaction_read_only', 'on', true),
            set_config('search_path', path, true),
            set_config('storage.operation', operation, true),
            set_config('request.jwt.claims', claims, true),
            set_config('role', caller_role, true);
    return query
        select o.id, o.name, o.bucket_id, o.version, o.metadata, o.user_metadata, o.created_at, o.updated_at
          from storage.objects o where o.bucket_id = in_bucket and o.name = object_name;
end
$$;

revoke execute on function embedded.find_object from public;
grant execute on function embedded.find_object to authenticator;
