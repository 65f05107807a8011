-- tensorage: the form of requests, and the answers of requests that are sent again.

-- Binary requests ----------------------------------------------------------------------------------
--
-- 40 bytes, big-endian, then `meta_bytes` of JSON, then the elements in C order, little-endian:
--   0  4  magic "TNSR"          8  8  data_id            24  4  block_size: elements per block
--   4  2  format version (1)   16  8  index: first       28  4  meta_bytes
--   6  2  reserved (0)                element            32  8  count: elements that follow

create or replace function tensorage.integer_at(request bytea, at int, bytes int) returns bigint
language sql immutable as $$
  select ('x' || lpad(encode(substr(request, at + 1, bytes), 'hex'), 16, '0'))::bit(64)::bigint
$$;

do $$
begin
  create type tensorage.header as (
    data_id bigint, index bigint, block_size bigint, count bigint, meta json, elements_at int);
exception when duplicate_object then
  null; -- Applied before: a type has no "if not exists".
end
$$;

create or replace function tensorage.meta(encoded bytea) returns json
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return convert_from(encoded, 'UTF8')::json;
exception when data_exception or program_limit_exceeded then
  raise exception using errcode = 'TS006', message = format('the meta of the request is not JSON: %s', sqlerrm);
end
$$;

create or replace function tensorage.parse(request bytea) returns tensorage.header
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header;
  meta_bytes bigint;
begin
  if request is null or octet_length(request) < 40 or substr(request, 1, 4) <> '\x544e5352'::bytea then
    raise exception using errcode = 'TS006', message = 'the request does not begin with a tensorage header';
  elsif tensorage.integer_at(request, 4, 2) <> 1 then
    raise exception using errcode = 'TS006',
      message = format('the request has format version %s, this project reads version 1',
                       tensorage.integer_at(request, 4, 2)),
      hint = 'Client and project are of different versions: apply the migrations of the newer one.';
  end if;
  h.data_id := tensorage.integer_at(request, 8, 8);
  h.index := tensorage.integer_at(request, 16, 8);
  h.block_size := tensorage.integer_at(request, 24, 4);
  meta_bytes := tensorage.integer_at(request, 28, 4);
  h.count := tensorage.integer_at(request, 32, 8);
  -- An element has at least a byte, an array at most 2^62 elements: no sum below overflows.
  if h.count not between 0 and octet_length(request) - 40 - meta_bytes then
    raise exception using errcode = 'TS006', message = 'the header of the request contradicts its length';
  elsif h.block_size = 0 or h.index not between 0 and 4611686018427387904 then
    raise exception using errcode = 'TS006',
      message = format('there are no blocks of %s elements at element %s', h.block_size, h.index);
  end if;
  if meta_bytes > 0 then
    h.meta := tensorage.meta(substr(request, 41, meta_bytes::int));
  end if;
  h.elements_at := 40 + meta_bytes;
  return h;
end
$$;

-- Raises if a request names more runs than the server builds at once: lists of n rows and of m runs stand for n * m.
create or replace function tensorage.check_pieces(pieces numeric) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if pieces > 1048576 then
    raise exception using errcode = 'TS006',
      message = format('%s runs are too many for one request, which may have 1048576', pieces),
      hint = 'Ask for fewer at a time.';
  end if;
end
$$;

-- A shape as Python writes it, for messages.
create or replace function tensorage.shape_text(shape bigint[]) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select format(case cardinality(shape) when 1 then '(%s,)' else '(%s)' end, array_to_string(shape, ', '))
$$;

-- Requests that are sent again ---------------------------------------------------------------------
--
-- A client that did not get its answer sends the same operation again. A function that changes something therefore begins
-- with tensorage.answered, and returns its result if that is one; and it ends with tensorage.answer.

-- True within the steps of a transaction: see the file on transactions.
create or replace function tensorage.in_transaction() returns boolean
language sql stable as $$ select coalesce(current_setting('tensorage.in_transaction', true), '') = 'on' $$;

-- The answer that this operation of this user gave before, or null. Makes two requests of one operation wait for each
-- other, so that the second finds the first one's answer. Attributes and other long columns are looked up: see below. The array may
-- be somebody else's, who may have ended the share: the answer is refused then.
create or replace function tensorage.answered(operation uuid) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  kept jsonb;
  d public.datasets;
begin
  if operation is null or tensorage.in_transaction() then
    return null;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(format('tensorage operation %s of %s', operation, auth.uid()), 0));
  select o.answer::jsonb into kept from tensorage.operations o where o.id = operation and o.user_id = auth.uid();
  if kept -> 'attrs' is null then
    return kept;
  end if;
  select * into d from public.datasets s where s.id = (kept ->> 'id')::bigint;
  if not tensorage.may_use((kept ->> 'user_id')::uuid, coalesce(d.key, kept ->> 'key')) then
    raise exception using errcode = 'TS003', message = format('the array %L is not shared with you any more', kept ->> 'key');
  elsif d.id is not null then
    kept := kept || jsonb_build_object('attrs', d.attrs, 'dims', d.dims, 'fill', encode(d.fill, 'base64'), 'zarr', d.zarr::text);
  end if;
  return kept;
end
$$;

-- Deletes some of the caller's answers that are older than a day, none that another request is deleting.
create or replace function tensorage.forget(max_operations int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := auth.uid();
begin
  delete from tensorage.operations o
   -- An array, not a join: a join may run the subquery again once the first answers are gone, and delete more.
   where o.user_id = me and o.id = any (array(
     select p.id from tensorage.operations p
      where p.user_id = me and p.finished_at < now() - interval '1 day'
      order by p.finished_at limit max_operations for update skip locked));
end
$$;

-- Deletes some of the answers that others got for writing to arrays of the caller, and that are older than a day: they count
-- against the caller, and the others may never come back.
create or replace function tensorage.forget_writers(max_operations int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := auth.uid();
begin
  delete from tensorage.operations o
   where o.ctid = any (array(
     select p.ctid from tensorage.operations p
      where p.owner = me and p.owner <> p.user_id and p.finished_at < now() - interval '1 day'
      order by p.finished_at limit max_operations for update skip locked));
end
$$;

-- True for an operation whose client says itself when the answer is needed no longer: the id is a UUID of version 8. Such
-- operations come from spools (folders in which writes wait), and may be sent again after weeks.
create or replace function tensorage.is_spooled(operation uuid) returns boolean
language sql immutable as $$ select substr(operation::text, 15, 1) = '8' $$;

-- Keeps an operation's answer, settles the bytes that it stored, and returns the answer. It is kept without attributes, dims,
-- fill value and metadata: a million appends would keep a million copies of them. `must_fit` is false for a request that makes room:
-- its answer is kept also where it does not fit.
create or replace function tensorage.answer(operation uuid, answer json, must_fit boolean default true) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if tensorage.in_transaction() then
    return answer;
  elsif operation is not null then
    -- An answer that is kept until its client is done with it counts against the client. It would take room from the owner
    -- of the array for as long as somebody else likes.
    insert into tensorage.operations (id, user_id, owner, answer, finished_at)
      values (operation, auth.uid(),
              case when tensorage.is_spooled(operation) then auth.uid()
                   else coalesce((answer ->> 'user_id')::uuid, auth.uid()) end,
              case when answer -> 'attrs' is null then answer
                   else (answer::jsonb || '{"attrs": {}, "dims": null, "fill": null, "zarr": null}')::json end,
              case when tensorage.is_spooled(operation) then 'infinity' else now() end);
    -- Two old ones for each new one: appends sweep nothing, and a user who only appends would keep all answers for ever.
    perform tensorage.forget(2);
  end if;
  perform tensorage.settle(must_fit);
  return answer;
end
$$;

-- Ids of the caller's operations between two ids whose answers are kept until the caller is done with them: at most 10,000, in
-- order.
create or replace function public.tensorage_answered(first uuid, last uuid) returns json
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := tensorage.me();
begin
  return array_to_json(array(
    select o.id from tensorage.operations o
     where o.user_id = me and o.finished_at = 'infinity' and o.id between first and last order by o.id limit 10000));
end
$$;

-- Notes that the caller will not send these operations again. Their answers are kept for a day more, as all others are: a
-- request that got stuck on its way may still arrive. Returns how many were kept.
create or replace function public.tensorage_acknowledge(operations uuid[]) returns int
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  me uuid := tensorage.me();
  noted int;
begin
  if cardinality(operations) > 10000 then
    raise exception using errcode = 'TS006', message = 'more than 10000 operations are too many for one request',
      hint = 'Name fewer at a time.';
  end if;
  update tensorage.operations o set finished_at = now()
   where o.user_id = me and o.finished_at = 'infinity' and o.id = any (operations);
  get diagnostics noted = row_count;
  return noted;
end
$$;
