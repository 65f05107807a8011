-- The part of Supabase's `auth` schema that an application meets, with hosted Supabase's names, types,
-- owner and grants. Run once by the superuser in a new cluster, after the roles were made.

create schema auth authorization supabase_auth_admin;

-- The Auth API's role owns the following objects: `postgres`, which runs the migrations, must not.
set local role supabase_auth_admin;

create type auth.aal_level as enum ('aal1', 'aal2', 'aal3');


-- Users ---------------------------------------------------------------------------------------------------

create table auth.users (
    instance_id                 uuid,
    id                          uuid not null primary key,
    aud                         varchar(255),
    role                        varchar(255),
    email                       varchar(255),
    encrypted_password          varchar(255),
    email_confirmed_at          timestamptz,
    invited_at                  timestamptz,
    confirmation_token          varchar(255),
    confirmation_sent_at        timestamptz,
    recovery_token              varchar(255),
    recovery_sent_at            timestamptz,
    email_change_token_new      varchar(255),
    email_change                varchar(255),
    email_change_sent_at        timestamptz,
    last_sign_in_at             timestamptz,
    raw_app_meta_data           jsonb,
    raw_user_meta_data          jsonb,
    is_super_admin              boolean,
    created_at                  timestamptz,
    updated_at                  timestamptz,
    phone                       text default null unique,
    phone_confirmed_at          timestamptz,
    phone_change                text default '',
    phone_change_token          varchar(255) default '',
    phone_change_sent_at        timestamptz,
    confirmed_at                timestamptz generated always as (least(email_confirmed_at, phone_confirmed_at)) stored,
    email_change_token_current  varchar(255) default '',
    email_change_confirm_status smallint default 0 check (email_change_confirm_status between 0 and 2),
    banned_until                timestamptz,
    reauthentication_token      varchar(255) default '',
    reauthentication_sent_at    timestamptz,
    is_sso_user                 boolean not null default false,
    deleted_at                  timestamptz,
    is_anonymous                boolean not null default false
);

comment on table auth.users is 'Auth: the users of this project.';
comment on column auth.users.encrypted_password is 'A bcrypt hash; the password itself is kept nowhere.';

-- One user an address, however it is spelt: also for rows that did not come through the API.
create unique index users_email_partial_key on auth.users (lower(email)) where not is_sso_user;


-- Identities: the ways a user can prove to be that user ----------------------------------------------------

create table auth.identities (
    provider_id     text not null,
    user_id         uuid not null references auth.users on delete cascade,
    identity_data   jsonb not null,
    provider        text not null,
    last_sign_in_at timestamptz,
    created_at      timestamptz,
    updated_at      timestamptz,
    email           text generated always as (lower(identity_data ->> 'email')) stored,
    id              uuid not null default gen_random_uuid() primary key,
    constraint identities_provider_id_provider_unique unique (provider_id, provider)
);

create index identities_user_id_idx on auth.identities (user_id);


-- Sessions, and the refresh tokens that keep each of them going --------------------------------------------

create table auth.sessions (
    id           uuid not null primary key,
    user_id      uuid not null references auth.users on delete cascade,
    created_at   timestamptz,
    updated_at   timestamptz,
    factor_id    uuid,
    aal          auth.aal_level,
    not_after    timestamptz,
    -- Without a zone (UTC is meant), as hosted Supabase has it.
    refreshed_at timestamp,
    user_agent   text,
    ip           inet,
    tag          text
);

comment on column auth.sessions.not_after is 'When the session ends whatever is refreshed; null for never.';

create index sessions_user_id_idx on auth.sessions (user_id);

create table auth.refresh_tokens (
    instance_id uuid,
    id          bigserial primary key,
    token       varchar(255) constraint refresh_tokens_token_unique unique,
    user_id     varchar(255),
    revoked     boolean,
    created_at  timestamptz,
    updated_at  timestamptz,
    parent      varchar(255),
    session_id  uuid references auth.sessions on delete cascade
);

comment on column auth.refresh_tokens.parent is 'The token that was exchanged for this one; null for a login.';

create index refresh_tokens_session_id_revoked_idx on auth.refresh_tokens (session_id, revoked);


-- Functions for policies, about the caller -----------------------------------------------------------------
-- `request.jwt.claims` is one JSON object; `request.jwt.claim.<name>` is how older PostgRESTs told one claim.
-- An empty setting is what is left of one that was local to an earlier transaction: the same as none.

create function auth.uid() returns uuid
language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
$$;

create function auth.role() returns text
language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.role', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
    )
$$;

create function auth.email() returns text
language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.email', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
    )
$$;

create function auth.jwt() returns jsonb
language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$$;

comment on function auth.uid() is 'The calling user''s id, or null.';
comment on function auth.role() is 'The calling user''s role, or null.';
comment on function auth.email() is 'The calling user''s e-mail address, or null.';
comment on function auth.jwt() is 'All claims of the calling user''s token, or null.';


-- Grants ---------------------------------------------------------------------------------------------------
-- Clients call the functions and see no table; row-level security without a policy says so a second time.

alter table auth.users enable row level security;
alter table auth.identities enable row level security;
alter table auth.sessions enable row level security;
alter table auth.refresh_tokens enable row level security;

grant usage on schema auth to anon, authenticated, service_role, postgres;

-- `references` is for the foreign keys of an application's tables, `trigger` for its sign-up hooks.
grant select, insert, update, delete, truncate, references, trigger on all tables in schema auth to postgres;
grant usage, select, update on all sequences in schema auth to postgres;

reset role;
