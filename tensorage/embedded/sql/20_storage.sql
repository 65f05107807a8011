-- The tables of Supabase's Storage service, with hosted Supabase's names, types, owner and grants: what
-- policies of an application are written on. Runs once by the superuser in a new cluster.

create schema storage authorization supabase_storage_admin;
alter role supabase_storage_admin set search_path = storage;

set local role supabase_storage_admin;

create table storage.buckets (
    id                  text primary key,
    name                text not null,
    -- Superseded by owner_id, which need not be a uuid; hosted Supabase still fills both.
    owner               uuid,
    owner_id            text,
    public              boolean default false,
    avif_autodetection  boolean default false,
    file_size_limit     bigint,
    allowed_mime_types  text[],
    created_at          timestamptz default now(),
    updated_at          timestamptz default now()
);
create unique index bname on storage.buckets (name);

create table storage.objects (
    id                  uuid primary key default gen_random_uuid(),
    bucket_id           text constraint "objects_bucketId_fkey" references storage.buckets,
    name                text,
    owner               uuid,
    owner_id            text,
    metadata            jsonb,
    user_metadata       jsonb,
    path_tokens         text[] generated always as (string_to_array(name, '/')) stored,
    version             text,
    created_at          timestamptz default now(),
    updated_at          timestamptz default now(),
    last_accessed_at    timestamptz default now()
);
create unique index bucketid_objname on storage.objects (bucket_id, name);
-- Not hosted Supabase's: a starting server asks which versions, of files that it finds, are some object's.
create index objects_version_idx on storage.objects (version);
create index name_prefix_search on storage.objects (name text_pattern_ops);

-- No policies: what nobody allows, nobody may.
alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;

create function storage.foldername(name text) returns text[] language sql immutable
    return (string_to_array(name, '/'))[1 : cardinality(string_to_array(name, '/')) - 1];

create function storage.filename(name text) returns text language sql immutable
    return split_part(name, '/', -1);

create function storage.extension(name text) returns text language sql immutable
    return split_part(storage.filename(name), '.', -1);

create function storage.update_updated_at_column() returns trigger language plpgsql as $$
begin
    new.updated_at := now();
    return new;
end
$$;
create trigger update_objects_updated_at before update on storage.objects
    for each row execute function storage.update_updated_at_column();

grant usage on schema storage to anon, authenticated, service_role, postgres;
grant all on storage.buckets, storage.objects to anon, authenticated, service_role, postgres;

reset role;
