-- tensorage, schema version 2: dense reads, assignment into stored arrays, compaction, attributes, renaming.
--
-- Changes what 20261123000000_tensorage.sql made, under the same rules: functions begin by comparing the owner with the
-- caller, and it may run twice.
--
-- A further SQLSTATE of class TS:
--   TS009 the rows have another dtype than the array (its description is the error's detail)

-- Tables ------------------------------------------------------------------------------------------

alter table public.datasets
  -- Stored, so that a quota of many datasets is one sum. (A generated column cannot read another one, itemsize.)
  add column if not exists nbytes numeric not null
    generated always as (tensorage.elements(shape)::numeric * substring(dtype from '^..(\d+)')::int) stored,
  -- A staged assignment holds changed copies of blocks of this array, made from this version of it.
  add column if not exists assign_to bigint references public.datasets on delete cascade,
  add column if not exists assign_version bigint;
create index if not exists datasets_assign_to on public.datasets (assign_to) where assign_to is not null;

-- Where the elements of a binary request belong, in order of position: lengths[i] elements at starts[i], which are
-- those from offsets[i] on among the elements of the request.
do $$
begin
  create type tensorage.spans as (starts bigint[], lengths bigint[], offsets bigint[]);
exception when duplicate_object then
  null; -- Applied before: a type has no "if not exists".
end
$$;

-- Inner functions: operations, quota, sweeping -------------------------------------------------------

-- The answer that this operation of this user gave before, or null. Also makes two requests of one operation wait for
-- each other, so that the second finds the first one's answer.
create or replace function tensorage.answered(operation uuid) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if operation is null then
    return null;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(format('tensorage operation %s of %s', operation, tensorage.me()), 0));
  return (select o.answer::jsonb || coalesce(
                   (select jsonb_build_object('attrs', d.attrs) from public.datasets d
                     where o.answer -> 'attrs' is not null and d.id = (o.answer ->> 'id')::bigint), '{}')
            from tensorage.operations o where o.id = operation and o.user_id = auth.uid());
end
$$;

-- Deletes some of the caller's answers that are older than a day, none that somebody else is deleting.
create or replace function tensorage.forget(max_operations int) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  delete from tensorage.operations o
   -- An array, not a join, which may ask for the next ones when the first are gone.
   where o.user_id = auth.uid() and o.id = any (array(
     select p.id from tensorage.operations p
      where p.user_id = auth.uid() and p.finished_at < now() - interval '1 day'
      order by p.finished_at limit max_operations for update skip locked))
$$;

-- Keeps an operation's answer. Without attributes: a million appends would keep a million copies of them.
create or replace function tensorage.answer(operation uuid, answer json) returns json
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if operation is not null then
    insert into tensorage.operations (id, user_id, answer)
      values (operation, auth.uid(),
              case when answer -> 'attrs' is null then answer else (answer::jsonb || '{"attrs": {}}')::json end);
    -- Two for the one: appends sweep nothing, and whoever does nothing else would keep all answers for ever.
    perform tensorage.forget(2);
  end if;
  return answer;
end
$$;

-- Deletes blocks of the caller's expired datasets, at most max_blocks of them: how many datasets are left. Waits for
-- nobody: those who write what is to be swept may be waiting for the array that this transaction replaces.
create or replace function tensorage.sweep(max_blocks int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  room int := max_blocks;
  victim bigint;
  deleted int;
begin
  for victim in
    select d.id from public.datasets d
     where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now()
     order by d.expires_at for update skip locked
  loop
    exit when room <= 0;
    delete from public.tensors t where t.data_id = victim and t.index in (
      select v.index from public.tensors v where v.data_id = victim order by v.index limit room);
    get diagnostics deleted = row_count;
    room := room - greatest(deleted, 1);
    if not exists (select from public.tensors t where t.data_id = victim) then
      -- Cascading to the staged appends and assignments of an array would delete all of their blocks at once.
      update public.datasets s set append_to = null, assign_to = null, expires_at = '-infinity'
       where s.id = any (array(select w.id from public.datasets w
                                where w.append_to = victim or w.assign_to = victim for update skip locked));
      delete from public.datasets d where d.id = victim and not exists (
        select from public.datasets w where w.append_to = victim or w.assign_to = victim);
    end if;
  end loop;
  -- A piece at a time, here too: whoever appended a million times yesterday need not wait for it today.
  perform tensorage.forget(256);
  return (select count(*) from public.datasets d
           where d.user_id = auth.uid() and d.state = 'staged' and d.expires_at <= now());
end
$$;

-- Makes a staged dataset with what `asked` says: key, shape, dtype, chunk, engine, is_shared, attrs, dims, operation,
-- append (rows for an array that is there), overwrite (an array that is there may be replaced).
create or replace function tensorage.stage(asked json) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
  target public.datasets;
  asked_shape bigint[] := array(select json_array_elements_text(asked -> 'shape')::bigint);
begin
  perform tensorage.sweep(64);
  select * into target from public.datasets t
   where t.user_id = tensorage.me() and t.key = asked ->> 'key' and t.state = 'committed';
  if coalesce((asked ->> 'append')::boolean, false) then
    perform tensorage.check_append(target, asked ->> 'key', asked_shape, asked ->> 'dtype');
    -- Until the row below refers to it: it may just be being replaced, and swept.
    perform from public.datasets t where t.id = target.id and t.state = 'committed' for key share;
    if not found then
      raise exception using errcode = 'TS003', message = 'the array to append to was replaced or deleted';
    end if;
  elsif target.id is not null and (asked ->> 'overwrite') is distinct from 'true' then
    raise exception using errcode = 'TS002', message = format('the key %L is taken', asked ->> 'key');
  end if;
  insert into public.datasets (
      user_id, key, shape, dtype, chunk, engine, is_shared, attrs, dims, overwrite, operation, append_to, expires_at)
    values (
      tensorage.me(), asked ->> 'key', asked_shape, asked ->> 'dtype', (asked ->> 'chunk')::int,
      coalesce(asked ->> 'engine', 'database'), coalesce((asked ->> 'is_shared')::boolean, false),
      coalesce((asked ->> 'attrs')::jsonb, '{}'),
      case json_typeof(asked -> 'dims') when 'array' then array(select json_array_elements_text(asked -> 'dims')) end,
      coalesce((asked ->> 'overwrite')::boolean, false), (asked ->> 'operation')::uuid,
      case when (asked ->> 'append')::boolean then target.id end,
      now() + interval '1 day')
    returning * into d;
  return d;
end
$$;

-- Hides the committed array under a key, but for one, to be swept piece by piece: deleting a large array takes longer
-- than a statement may. Its version, or null if there is none. The caller holds the lock of the key.
create or replace function tensorage.hide(key text, but bigint) returns bigint
language sql set search_path = pg_catalog, pg_temp as $$
  update public.datasets o set state = 'staged', expires_at = '-infinity', operation = null
   where o.user_id = auth.uid() and o.key = hide.key and o.state = 'committed' and o.id <> but
  returning o.version
$$;

create or replace function tensorage.publish(d public.datasets) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  published public.datasets;
  replaced bigint;
begin
  perform tensorage.lock_key(d.key);
  if d.overwrite then
    replaced := tensorage.hide(d.key, d.id);
  end if;
  update public.datasets c set state = 'committed', expires_at = null, updated_at = now(),
         version = coalesce(replaced, 0) + 1, stable_since = coalesce(replaced, 0) + 1
   where c.id = d.id returning * into published;
  perform tensorage.end_staging(d.id);
  return published;
exception when unique_violation then
  raise exception using errcode = 'TS002', message = format('the key %L is taken', d.key);
end
$$;

-- Raises unless the blocks of d follow each other without a gap from element 0 to its last.
create or replace function tensorage.check_complete(d public.datasets) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  expected bigint := tensorage.elements(d.shape);
  contiguous boolean;
  stored numeric;
begin
  select bool_and(b.index + b.count = b.next) and min(b.index) = 0 into contiguous
    from (select t.index, t.count, lead(t.index, 1, expected) over (order by t.index) as next
            from public.tensors t where t.data_id = d.id) b;
  if coalesce(contiguous, expected = 0) then
    return;
  end if;
  select coalesce(sum(t.count), 0) into stored from public.tensors t where t.data_id = d.id;
  raise exception using errcode = 'TS004',
    message = format('%s of the %s elements of %L are there', stored, expected, d.key),
    detail = json_build_object('stored', stored, 'expected', expected)::text,
    hint = 'Send the missing blocks, or abort.';
end
$$;

create or replace function tensorage.check_append(
  target public.datasets, key text, shape bigint[], dtype text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if target.id is null and exists (select from public.datasets s
                                    where s.key = check_append.key and s.is_shared and s.state = 'committed') then
    raise exception using errcode = 'TS007', message = format('the array %L belongs to somebody else', key);
  elsif target.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array %L to append to', key);
  elsif cardinality(target.shape) = 0 or target.shape[2:] is distinct from shape[2:]
        or cardinality(target.shape) <> cardinality(shape) or coalesce(shape[1], -1) < 0 then
    raise exception using errcode = 'TS006',
      message = format('rows of shape %s do not fit the array %L of shape %s', tensorage.shape_text(shape), key,
                       tensorage.shape_text(target.shape)),
      hint = 'All but the first axis have to be the same.';
  elsif target.shape[1]::numeric + shape[1] > 9223372036854775807 then
    raise exception using errcode = 'TS006', message = format('the array %L has no room for %s more rows', key, shape[1]);
  elsif target.dtype is distinct from dtype then
    raise exception using errcode = 'TS009',
      message = format('rows of dtype %s do not fit the array %L of dtype %s', dtype, key, target.dtype),
      detail = tensorage.describe(target)::text;
  end if;
end
$$;

-- As Python writes it.
create or replace function tensorage.shape_text(shape bigint[]) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select format(case cardinality(shape) when 1 then '(%s,)' else '(%s)' end, array_to_string(shape, ', '))
$$;

-- Inner functions: reading ------------------------------------------------------------------------------

-- Whether blocks are better read whole, once each, than a piece at a time: a lookup of a piece takes about 15 us, a
-- block 10 us and 0.5 ms for each MiB, passing by one that holds nothing of it 2 us. Of a few hundred pieces it is not
-- asked: to find it out would take longer than is saved.
create or replace function tensorage.is_dense(d public.datasets, pieces numeric, blocks numeric, extent numeric) returns boolean
language sql immutable as $$
  select pieces * 15 > least(blocks, extent / d.chunk + 1) * (10 + d.chunk::numeric * d.itemsize / 2048)
                       + (extent / d.chunk + 1) * 2
$$;

-- The functions that call these have blocks read along their index. Of a small or a new table, PostgreSQL would rather
-- read all rows and sort those it wants, with their bytes: half as fast, and through a file if they are many.

-- The elements at starts[i] .. + lengths[i] - 1, for every i, each piece looked up on its own.
create or replace function tensorage.gather(d public.datasets, starts bigint[], lengths bigint[]) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  -- No block is longer than d.chunk, so that one which reaches into a piece begins within that distance of it. The
  -- "order by" keeps the subquery one: it is answered for one piece after the other, in the order of the index.
  return (
    select string_agg(s.piece, '')
      from unnest(starts, lengths) p(at, length), lateral (
        select substr(t.tensor,
                      (greatest(p.at - t.index, 0) * d.itemsize)::int + 1,
                      ((least(t.index + t.count, p.at + p.length) - greatest(t.index, p.at)) * d.itemsize)::int
               ) as piece
          from public.tensors t
         where t.data_id = d.id and t.index > p.at - d.chunk and t.index < p.at + p.length
           and t.index + t.count > p.at
         order by t.index) s);
end
$$;

-- The same from blocks that are read whole, once each. The spans are in order, and none overlaps the next.
create or replace function tensorage.gather_dense(d public.datasets, starts bigint[], lengths bigint[]) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  n int := cardinality(starts);
  answer bytea;
begin
  -- "offset 0" keeps the blocks in order before they are read, and has each of them read once.
  select string_agg((
      select string_agg(substr(b.bytes,
                               ((greatest(s.at, b.index) - b.index) * d.itemsize)::int + 1,
                               ((least(s.at + s.length, b.index + b.count) - greatest(s.at, b.index)) * d.itemsize)::int), '')
        from unnest(starts[b.low:b.high], lengths[b.low:b.high]) s(at, length)), '')
    into answer
    from (
      select o.*, o.tensor || ''::bytea as bytes from (
        select t.index, t.count, t.tensor, w.low, w.high
          from public.tensors t, lateral (
            -- The spans from the first that ends in the block or behind it to the last that begins before its end.
            select i.at + (case when i.at = 0 or starts[i.at] + lengths[i.at] <= t.index then 1 else 0 end) as low,
                   width_bucket(t.index + t.count - 1, starts) as high
              from width_bucket(t.index, starts) i(at)) w
         where t.data_id = d.id and t.index > starts[1] - d.chunk and t.index < starts[n] + lengths[n]
           and w.low <= w.high
         order by t.index offset 0) o offset 0) b;
  return answer;
end
$$;

-- The elements at rows[i] + runs[j] .. + run_length - 1, for every i and j, i outermost, from blocks that are read
-- whole, once each. In order, and none overlaps the next.
create or replace function tensorage.gather_grid(
  d public.datasets, rows bigint[], runs bigint[], run_length bigint) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  row_first bigint := runs[1];
  row_end bigint := runs[cardinality(runs)] + run_length;
  run_bytes int := run_length * d.itemsize;
  offsets int[];
  answer bytea;
begin
  if (row_end - row_first) * d.itemsize < 1073741824 then
    offsets := array(select ((u - row_first) * d.itemsize)::int + 1 from unnest(runs) u);
  end if;
  select string_agg(
      -- Positions and runs are not joined: that may be done from either side, and nothing would be in its place.
      case when b.is_inside then (
        select string_agg(substr(b.bytes, s.at, run_bytes), '')
          from (select ((r.at + row_first - b.index) * d.itemsize)::int + unnest(offsets) as at
                  from unnest(rows[b.low:b.high]) r(at)) s)
      else (
        select string_agg(substr(b.bytes,
                                 ((greatest(s.at, b.index) - b.index) * d.itemsize)::int + 1,
                                 ((least(s.at + run_length, b.index + b.count) - greatest(s.at, b.index)) * d.itemsize)::int), '')
          from (select r.at + unnest(runs) as at from unnest(rows[b.low:b.high]) r(at)) s
         where s.at < b.index + b.count and s.at + run_length > b.index)
      end, '')
    into answer
    from (
      select o.*, o.tensor || ''::bytea as bytes from (
        select t.index, t.count, t.tensor, w.low, w.high,
               rows[w.low] + row_first >= t.index and rows[w.high] + row_end <= t.index + t.count as is_inside
          from public.tensors t, lateral (
            select width_bucket(t.index - row_end, rows) + 1 as low,
                   width_bucket(t.index + t.count - 1 - row_first, rows) as high) w
         where t.data_id = d.id and t.index > rows[1] + row_first - d.chunk and t.index < rows[cardinality(rows)] + row_end
           and w.low <= w.high
         order by t.index offset 0) o offset 0) b;
  return answer;
end
$$;

-- Whether no span reaches into the next one.
create or replace function tensorage.are_in_order(starts bigint[], lengths bigint[]) returns boolean
language sql immutable as $$
  select not exists (
    select from unnest(starts[:cardinality(starts) - 1], lengths[:cardinality(starts) - 1], starts[2:]) s(at, length, next)
     where s.at + s.length > s.next)
$$;

create or replace function tensorage.are_apart(positions bigint[], distance bigint) returns boolean
language sql immutable as $$
  select not exists (
    select from unnest(positions[:cardinality(positions) - 1], positions[2:]) p(at, next) where p.next - p.at < distance)
$$;

-- The array that a reader opened, if its elements are still what they were.
create or replace function tensorage.readable(data_id bigint, version bigint) returns public.datasets
language plpgsql stable set search_path = '' as $$
declare
  d public.datasets;
begin
  select * into d from public.datasets s where s.id = readable.data_id;
  if d.id is null or d.state <> 'committed'
     or (readable.version between d.stable_since and d.version) is not true then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return d;
end
$$;

-- Raises unless `elements` may be asked for, of which the first is at `first` and the last one before `behind`. What
-- these are computed from may be any numbers: hence numerics, and no sum of positions overflows after this.
create or replace function tensorage.check_wanted(
  d public.datasets, elements numeric, first numeric, behind numeric) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if elements is null then
    raise exception using errcode = 'TS006', message = 'the selection has rows, runs or lengths that are none';
  -- The answer is in memory several times, and the same few bytes may be asked for again and again.
  elsif elements * d.itemsize > 16777216 then
    raise exception using errcode = 'TS006',
      message = format('%s elements are too many for one request', elements), hint = 'Ask for less at a time.';
  elsif first < 0 or behind * d.itemsize > d.nbytes then
    raise exception using errcode = 'TS004',
      message = format('elements %s to %s are not all in an array of %s', first, behind, trunc(d.nbytes / d.itemsize)),
      hint = 'The selection lies outside of the array.';
  end if;
end
$$;

create or replace function tensorage.check_answer(d public.datasets, elements numeric, answer bytea) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(octet_length(answer), 0) <> elements * d.itemsize then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s bytes asked for are there', coalesce(octet_length(answer), 0), elements * d.itemsize),
      hint = 'Blocks of the array were deleted behind its back.';
  end if;
  return coalesce(answer, '');
end
$$;

-- Inner functions: merging and assigning ----------------------------------------------------------------

-- Makes one block of those from `first` to `last`, `total` elements in all.
create or replace function tensorage.merge_blocks(id bigint, first bigint, last bigint, total bigint) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  with gone as (
    delete from public.tensors t where t.data_id = id and t.index > first and t.index <= last
    returning t.index, t.tensor)
  update public.tensors t set count = total,
         tensor = t.tensor || (select string_agg(g.tensor, '' order by g.index) from gone g)
   where t.data_id = id and t.index = first
$$;

create or replace function tensorage.merge_tail(d public.datasets) returns void
language plpgsql set search_path = pg_catalog, pg_temp
-- The last blocks first, along the index: without statistics, PostgreSQL would rather sort all of them.
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  first bigint;
  last bigint;
  total bigint := 0;
  b record;
begin
  for b in select t.index, t.count from public.tensors t where t.data_id = d.id order by t.index desc loop
    exit when last is not null and (b.count > total or b.count + total > d.chunk);
    first := b.index;
    last := coalesce(last, b.index);
    total := total + b.count;
  end loop;
  if first < last then
    perform tensorage.merge_blocks(d.id, first, last, total);
  end if;
end
$$;

-- Raises if a request names more runs than are built at once: a list of n and one of m stand for n * m of them.
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

create or replace function tensorage.positions(list json) returns bigint[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  perform tensorage.check_pieces(case json_typeof(list) when 'array' then json_array_length(list) end);
  return array(select json_array_elements_text(list)::bigint);
exception when data_exception then
  raise exception using errcode = 'TS006', message = format('the positions of the request are no integers: %s', sqlerrm);
end
$$;

-- rows[i] + runs[j], for every i and j, i outermost.
create or replace function tensorage.sums(rows bigint[], runs bigint[]) returns bigint[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return array(select r.at + unnest(runs) from unnest(rows) r(at));
exception when numeric_value_out_of_range then
  raise exception using errcode = 'TS006', message = 'the request has rows and runs that are no positions';
end
$$;

-- Where the elements of an assignment belong. Meta: rows, runs and run_length as tensorage_read takes them, or starts
-- and lengths as tensorage_read_spans does.
create or replace function tensorage.parse_spans(h tensorage.header) returns tensorage.spans
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  s tensorage.spans;
  rows bigint[];
  runs bigint[];
  run_length bigint := (tensorage.positions(json_build_array(h.meta ->> 'run_length')))[1];
begin
  if h.meta -> 'starts' is not null then
    s.starts := tensorage.positions(h.meta -> 'starts');
    s.lengths := tensorage.positions(h.meta -> 'lengths');
  else
    rows := tensorage.positions(h.meta -> 'rows');
    runs := tensorage.positions(h.meta -> 'runs');
    -- Before they are multiplied: two short lists may stand for more runs than there is memory.
    perform tensorage.check_pieces(cardinality(rows)::numeric * cardinality(runs));
    if (cardinality(rows)::numeric * cardinality(runs) * run_length = h.count) is not true then
      raise exception using errcode = 'TS006',
        message = format('%s elements do not fill what is to be assigned', h.count);
    end if;
    s.starts := tensorage.sums(rows, runs);
    s.lengths := array_fill(run_length, array[cardinality(s.starts)]);
  end if;
  if cardinality(s.starts) = 0 or cardinality(s.starts) is distinct from cardinality(s.lengths)
     or exists (select from unnest(s.starts, s.lengths) p(at, length)
                 where (at between 0 and 4611686018427387904 and length between 1 and 4611686018427387904) is not true) then
    raise exception using errcode = 'TS006', message = 'the assignment has starts or lengths that are none';
  elsif (select sum(length) from unnest(s.lengths) length) <> h.count then
    raise exception using errcode = 'TS006',
      message = format('%s elements do not fill what is to be assigned', h.count);
  end if;
  select array_agg(p.at order by p.at), array_agg(p.length order by p.at), array_agg(p.behind - p.length order by p.at)
    into s.starts, s.lengths, s.offsets
    from (select q.at, q.length, sum(q.length) over (order by q.number)::bigint as behind
            from unnest(s.starts, s.lengths) with ordinality q(at, length, number)) p;
  if not tensorage.are_in_order(s.starts, s.lengths) then
    raise exception using errcode = 'TS006', message = 'the assignment names an element twice';
  end if;
  return s;
end
$$;

-- A block with the elements of a request in their places. The spans are those that reach into it.
create or replace function tensorage.patched(
  old bytea, index bigint, count int, itemsize int, s tensorage.spans, request bytea, elements_at int) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  n int := cardinality(s.starts);
  block_end bigint := index + count;
  last_end bigint := least(s.starts[n] + s.lengths[n], block_end);
begin
  return (
    select string_agg(
             substr(old, ((p.before - index) * itemsize)::int + 1, ((greatest(p.at, index) - p.before) * itemsize)::int)
             || substr(request,
                       elements_at + ((p.first + greatest(index - p.at, 0)) * itemsize)::int + 1,
                       ((least(p.at + p.length, block_end) - greatest(p.at, index)) * itemsize)::int),
             '' order by p.at)
      from (select q.at, q.length, q.first, lag(q.at + q.length, 1, index) over (order by q.at) as before
              from unnest(s.starts, s.lengths, s.offsets) q(at, length, first)) p)
    || substr(old, ((last_end - index) * itemsize)::int + 1);
end
$$;

-- Blocks that spans may reach into: those from the first span to the last, or, where there would be many between few
-- spans, those that each reaches into. A lookup takes about 15 us, passing by a block 2 us.
create or replace function tensorage.blocks_between(d public.datasets, s tensorage.spans)
returns table (index bigint, count int)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  n int := cardinality(s.starts);
  behind bigint := s.starts[n] + s.lengths[n];
begin
  if n * 15 > ((behind - s.starts[1]) / d.chunk + 1) * 2 then
    return query
      select t.index, t.count from public.tensors t
       where t.data_id = d.id and t.index > s.starts[1] - d.chunk and t.index < behind;
  else
    return query
      select distinct b.index, b.count
        from unnest(s.starts, s.lengths) p(at, length), lateral (
          select t.index, t.count from public.tensors t
           where t.data_id = d.id and t.index > p.at - d.chunk and t.index < p.at + p.length
           order by t.index) b;
  end if;
end
$$;

-- Puts the elements of a request in their places: into the blocks of d itself, or (into another, staged dataset)
-- into copies of them, made where there is none yet.
create or replace function tensorage.patch(
  d public.datasets, into_id bigint, s tensorage.spans, request bytea, elements_at int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  n int := cardinality(s.starts);
  missing bigint := (select sum(length) from unnest(s.lengths) length);
  touched tensorage.spans;
  b record;
begin
  if octet_length(request) - elements_at <> missing * d.itemsize then
    raise exception using errcode = 'TS006',
      message = format('%s elements of %s are %s bytes, the request holds %s', missing, d.dtype,
                       missing * d.itemsize, octet_length(request) - elements_at);
  end if;
  for b in
    select t.index, t.count, w.low, w.high
      from tensorage.blocks_between(d, s) t, lateral (
        select i.at + (case when i.at = 0 or s.starts[i.at] + s.lengths[i.at] <= t.index then 1 else 0 end) as low,
               width_bucket(t.index + t.count - 1, s.starts) as high
          from width_bucket(t.index, s.starts) i(at)) w
     where w.low <= w.high
     order by t.index
  loop
    touched := row(s.starts[b.low:b.high], s.lengths[b.low:b.high], s.offsets[b.low:b.high])::tensorage.spans;
    missing := missing - (
      select sum(least(p.at + p.length, b.index + b.count) - greatest(p.at, b.index))
        from unnest(touched.starts, touched.lengths) p(at, length));
    if into_id <> d.id then
      insert into public.tensors (data_id, user_id, index, count, tensor)
        select into_id, d.user_id, t.index, t.count,
               tensorage.patched(t.tensor || ''::bytea, t.index, t.count, d.itemsize, touched, request, elements_at)
          from public.tensors t where t.data_id = d.id and t.index = b.index and t.count = b.count
        on conflict (data_id, index) do nothing;
      continue when found;
    end if;
    update public.tensors t
       set tensor = tensorage.patched(t.tensor || ''::bytea, t.index, t.count, d.itemsize, touched, request, elements_at)
     where t.data_id = into_id and t.index = b.index and t.count = b.count;
    -- An array may be appended to while copies are made of its blocks: the last ones may just have been merged.
    if not found then
      raise exception using errcode = 'TS003', message = format('the array %L has changed while it was assigned to', d.key);
    end if;
  end loop;
  if missing <> 0 then
    raise exception using errcode = 'TS004',
      message = format('%s elements that were to be assigned are not there', missing),
      hint = 'The selection lies outside of the array, or its blocks were deleted behind its back.';
  end if;
end
$$;

-- The caller's array as a writer opened it, locked.
create or replace function tensorage.assignable(data_id bigint, version bigint) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  select * into d from public.datasets s where s.id = assignable.data_id and s.user_id = tensorage.me() for update;
  if d.id is null and exists (select from public.datasets s
                               where s.id = assignable.data_id and s.is_shared and s.state = 'committed') then
    raise exception using errcode = 'TS007', message = 'the array belongs to somebody else';
  elsif d.id is null or d.state <> 'committed'
     or (assignable.version between d.stable_since and d.version) is not true then
    raise exception using errcode = 'TS003', message = 'the array has changed since it was opened';
  end if;
  return d;
end
$$;

-- Makes the changed copies of a staged assignment blocks of its array, in place of those they were made from.
create or replace function tensorage.publish_assignment(d public.datasets) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  target public.datasets;
  replaced bigint;
begin
  select * into target from public.datasets t where t.id = d.assign_to and t.state = 'committed' for update;
  -- Rows may have been appended meanwhile, as long as that left the blocks alone that were copied.
  -- A subquery for each block, not a join: PostgreSQL might read all blocks of the array for one.
  if target.id is null or target.stable_since > d.assign_version or exists (
       select from public.tensors s
        where s.data_id = d.id and s.count is distinct from (
          select t.count from public.tensors t where t.data_id = target.id and t.index = s.index)) then
    raise exception using errcode = 'TS003', message = format('the array %L has changed while it was assigned to', d.key);
  end if;
  -- The old blocks go to a dataset that is swept piece by piece: deleting many takes longer than a statement may.
  insert into public.datasets (user_id, owner, key, shape, dtype, chunk, expires_at)
    values (d.user_id, d.owner, d.key, '{0}', d.dtype, d.chunk, '-infinity') returning id into replaced;
  update public.tensors t set data_id = replaced
   where t.data_id = target.id and t.index = any (array(select s.index from public.tensors s where s.data_id = d.id));
  update public.tensors t set data_id = target.id where t.data_id = d.id;
  delete from public.datasets s where s.id = d.id;
  return tensorage.changed(target.id);
end
$$;

-- Notes that elements of an array are others now: those who read it begin anew.
create or replace function tensorage.changed(id bigint) returns public.datasets
language sql set search_path = pg_catalog, pg_temp as $$
  update public.datasets t set version = t.version + 1, stable_since = t.version + 1, updated_at = now()
   where t.id = changed.id returning t.*
$$;

-- Functions of the REST API -----------------------------------------------------------------------------

create or replace function public.tensorage_version() returns int
language sql stable set search_path = pg_catalog, pg_temp as $$ select 2 $$;

-- From the index, the keys of a page come in their order, and no others. PostgreSQL plans for the average user, and for
-- a prefix that it may not know yet: where these have fewer keys than a page, it would fetch all of them and sort them.
create or replace function public.tensorage_list(
  prefix text default '', after text default '', max_rows int default 1000) returns json
language sql stable security definer set search_path = pg_catalog, pg_temp
set enable_bitmapscan = off set enable_seqscan = off set enable_sort = off as $$
  -- The last string that begins with the prefix is no greater than the prefix and as many of the greatest character
  -- as a key has room for, and none between the two begins otherwise: no more is asked for, since PostgreSQL thinks that
  -- few keys pass starts_with(), and that it has to look at all of them for a page.
  select coalesce(json_agg(k.key order by k.key), '[]') from (
    (select d.key from public.datasets d
      where d.user_id = (select tensorage.me()) and d.state = 'committed'
        and d.key >= prefix and d.key > after and d.key <= prefix || repeat(chr(1114111), 256)
        order by d.key limit least(max_rows, 1000))
    union
    (select d.key from public.datasets d
      where d.is_shared and d.state = 'committed'
        and d.key >= prefix and d.key > after and d.key <= prefix || repeat(chr(1114111), 256)
        order by d.key limit least(max_rows, 1000))
    order by 1 limit least(max_rows, 1000)) k
$$;

-- The elements at rows[i] + runs[j] .. + run_length - 1, for every i and j, i outermost.
create or replace function public.tensorage_read(
  data_id bigint, version bigint, rows bigint[], runs bigint[], run_length bigint)
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  d public.datasets := tensorage.readable(data_id, version);
  n int := cardinality(rows);
  m int := cardinality(runs);
  -- Not bigints: what is asked for may be anything.
  pieces numeric := n::numeric * m;
  row_extent numeric := runs[m]::numeric - runs[1] + run_length;
  extent numeric := rows[n]::numeric - rows[1] + row_extent;
  first numeric;
  behind numeric;
  is_whole boolean;
  blocks numeric;
  starts bigint[];
begin
  perform tensorage.check_pieces(greatest(n, m, pieces));
  select r.low::numeric + u.low, r.high::numeric + u.high + run_length, r.there = n and u.there = m
    into first, behind, is_whole
    from (select min(at) as low, max(at) as high, count(at) as there from unnest(rows) at) r,
         (select min(at) as low, max(at) as high, count(at) as there from unnest(runs) at) u;
  perform tensorage.check_wanted(d, case when is_whole and run_length >= 1 then pieces * run_length end, first, behind);
  if pieces = 0 then
    return '';
  elsif pieces = 1 then
    -- A long run, as a rule. Nothing is called, and nothing put into a variable: each would copy its bytes.
    return (
      select case when octet_length(p.bytes) = run_length * d.itemsize then p.bytes
                  else tensorage.check_answer(d, run_length, p.bytes) end
        from (select string_agg(s.piece, '') as bytes from (
                select substr(t.tensor,
                              (greatest(rows[1] + runs[1] - t.index, 0) * d.itemsize)::int + 1,
                              ((least(t.index + t.count, rows[1] + runs[1] + run_length)
                                - greatest(t.index, rows[1] + runs[1])) * d.itemsize)::int) as piece
                  from public.tensors t
                 where t.data_id = d.id and t.index > rows[1] + runs[1] - d.chunk
                   and t.index < rows[1] + runs[1] + run_length and t.index + t.count > rows[1] + runs[1]
                 order by t.index) s) p);
  elsif pieces >= 256 and rows[1] >= 0 and runs[1] >= 0 and row_extent > 0 and extent > 0
        and tensorage.is_dense(d, pieces, 1, extent) then
    blocks := (select count(distinct r / d.chunk) from unnest(rows) r) * (1 + trunc(row_extent / d.chunk));
    if tensorage.is_dense(d, pieces, blocks, extent)
       and tensorage.are_apart(rows, row_extent::bigint) and tensorage.are_apart(runs, run_length) then
      return tensorage.check_answer(d, pieces * run_length, tensorage.gather_grid(d, rows, runs, run_length));
    end if;
  end if;
  starts := array(select r.at + unnest(runs) from unnest(rows) r(at));
  return tensorage.check_answer(d, pieces * run_length,
                                tensorage.gather(d, starts, array_fill(run_length, array[cardinality(starts)])));
end
$$;

-- The elements at starts[i] .. + lengths[i] - 1, for every i.
create or replace function public.tensorage_read_spans(
  data_id bigint, version bigint, starts bigint[], lengths bigint[])
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  d public.datasets := tensorage.readable(data_id, version);
  n int := cardinality(starts);
  extent numeric := starts[n]::numeric - starts[1] + lengths[n];
  wanted numeric;
  first numeric;
  behind numeric;
  are_spans boolean;
  answer bytea;
begin
  perform tensorage.check_pieces(greatest(n, cardinality(lengths)));
  select coalesce(sum(length), 0), min(at), max(at::numeric + length), count(*) = count(at) filter (where length >= 1)
    into wanted, first, behind, are_spans
    from unnest(starts, lengths) s(at, length);
  perform tensorage.check_wanted(d, case when n = cardinality(lengths) and are_spans then wanted end, first, behind);
  if n = 0 then
    return '';
  -- An array that PostgreSQL is given as text may begin at any number: only from 1 to n have both the same places.
  elsif n >= 256 and array_lower(lengths, 1) = 1 and extent > 0 and tensorage.is_dense(d, n, 1, extent)
        and tensorage.is_dense(d, n, (select count(distinct at / d.chunk) from unnest(starts) at), extent)
        and tensorage.are_in_order(starts, lengths) then
    answer := tensorage.gather_dense(d, starts, lengths);
  else
    answer := tensorage.gather(d, starts, lengths);
  end if;
  return tensorage.check_answer(d, wanted, answer);
end
$$;

create or replace function public.tensorage_put(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  d public.datasets := tensorage.staged(h.data_id);
begin
  if d.assign_to is not null then
    raise exception using errcode = 'TS006', message = format('%L is being assigned to, not written', d.key);
  elsif h.index + h.count > tensorage.elements(d.shape) then
    raise exception using errcode = 'TS006',
      message = format('elements %s to %s lie outside of the shape %s', h.index, h.index + h.count,
                       tensorage.shape_text(d.shape));
  elsif tensorage.cuts_blocks(d, h.index, h.count, h.chunk) then
    raise exception using errcode = 'TS006',
      message = format('elements %s to %s are stored in other blocks', h.index, h.index + h.count),
      hint = 'Send the same blocks again, or abort.';
  end if;
  perform tensorage.insert_blocks(d, h.index, h.count, h.chunk, $1, h.elements_at);
  perform tensorage.settle();
  return json_build_object('id', d.id, 'index', h.index, 'count', h.count);
end
$$;

-- A dataset of the caller that is being written, kept from being swept and locked against its commit.
create or replace function tensorage.staged(data_id bigint) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  -- What is staged need not be on disk before its commit, which waits for all that was written before it, too. Should
  -- the server fail in between, blocks are missing, and the commit says so.
  perform set_config('synchronous_commit', 'off', true);
  -- Before the shared lock below, which two writers hold at once: neither could then update the row.
  update public.datasets s set expires_at = now() + interval '1 day'
   where s.id = staged.data_id and s.user_id = tensorage.me() and s.state = 'staged'
     and s.expires_at between now() and now() + interval '12 hours';
  -- Shared among the writers, and against the commit, which must not overtake a block.
  select * into d from public.datasets s where s.id = staged.data_id and s.user_id = tensorage.me() for share;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
  elsif d.state <> 'staged' or d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L is no longer being written', d.key);
  end if;
  return d;
end
$$;

create or replace function public.tensorage_commit(
  data_id bigint, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  d public.datasets;
  target public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.id = tensorage_commit.data_id and s.user_id = tensorage.me() for update;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('there is no array being written with id %s', data_id);
  elsif d.state = 'committed' then
    return tensorage.describe(d);
  elsif d.expires_at <= now() then
    raise exception using errcode = 'TS003', message = format('the array %L was aborted', d.key);
  elsif d.assign_to is not null then
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish_assignment(d)));
  end if;
  perform tensorage.check_complete(d);
  if d.append_to is null then
    return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.publish(d)));
  end if;
  target := tensorage.extend(d.append_to, d.shape[1]);
  update public.tensors t
     set data_id = target.id, index = t.index + tensorage.elements(target.shape) - tensorage.elements(d.shape)
   where t.data_id = d.id;
  update public.datasets t set chunk = greatest(t.chunk, d.chunk) where t.id = target.id returning * into target;
  delete from public.datasets s where s.id = d.id;
  perform tensorage.merge_tail(target);
  return tensorage.answer(operation, tensorage.describe(target));
end
$$;

-- Rows at the end of an array, in one request. Meta: key, shape (of the rows), dtype, operation. The array's own chunk
-- says where they are cut: the sender need not know it.
create or replace function public.tensorage_append(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  operation uuid := (h.meta ->> 'operation')::uuid;
  before json := tensorage.answered(operation);
  added bigint[] := array(select json_array_elements_text(h.meta -> 'shape')::bigint);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.user_id = tensorage.me() and s.key = h.meta ->> 'key' and s.state = 'committed';
  perform tensorage.check_append(d, h.meta ->> 'key', added, h.meta ->> 'dtype');
  if h.count <> tensorage.elements(added) then
    raise exception using errcode = 'TS004',
      message = format('%s elements do not fill the shape %s', h.count, tensorage.shape_text(added));
  end if;
  d := tensorage.extend(d.id, added[1]);
  perform tensorage.insert_blocks(d, tensorage.elements(d.shape) - h.count, h.count, d.chunk, $1, h.elements_at);
  perform tensorage.merge_tail(d);
  return tensorage.answer(operation, tensorage.describe(d));
end
$$;

-- Changes elements of an array, in one request. Header: data_id. Meta: version, operation, and where they belong.
create or replace function public.tensorage_assign(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  operation uuid := (h.meta ->> 'operation')::uuid;
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  d := tensorage.assignable(h.data_id, (h.meta ->> 'version')::bigint);
  perform tensorage.patch(d, d.id, tensorage.parse_spans(h), $1, h.elements_at);
  return tensorage.answer(operation, tensorage.describe(tensorage.changed(d.id)));
end
$$;

-- Begins an assignment of several requests: a staged dataset, for tensorage_patch. Counts in the quota as the array.
create or replace function public.tensorage_begin_assign(data_id bigint, version bigint, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  target public.datasets;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  select * into d from public.datasets s
   where s.operation = tensorage_begin_assign.operation and s.user_id = tensorage.me();
  if d.id is null then
      perform tensorage.sweep(64);
    target := tensorage.assignable(data_id, version);
    insert into public.datasets (
        user_id, owner, key, shape, dtype, chunk, engine, operation, assign_to, assign_version, expires_at)
      values (
        target.user_id, target.owner, target.key, target.shape, target.dtype, target.chunk, target.engine,
        tensorage_begin_assign.operation, target.id, target.version, now() + interval '1 day')
      returning * into d;
  end if;
  return tensorage.describe(d);
end
$$;

-- Elements of a staged assignment. Header: data_id, of the staged dataset. Meta: where they belong.
create or replace function public.tensorage_patch(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  d public.datasets := tensorage.staged(h.data_id);
  target public.datasets;
begin
  if d.assign_to is null then
    raise exception using errcode = 'TS006', message = format('%L is being written, not assigned to', d.key);
  end if;
  -- Locked against the sweeping of its blocks, but not against appends.
  select * into target from public.datasets t where t.id = d.assign_to and t.state = 'committed' for key share;
  if target.id is null or target.stable_since > d.assign_version then
    raise exception using errcode = 'TS003', message = format('the array %L has changed while it was assigned to', d.key);
  end if;
  perform tensorage.patch(target, d.id, tensorage.parse_spans(h), $1, h.elements_at);
  perform tensorage.settle();
  return json_build_object('id', d.id, 'count', h.count);
end
$$;

-- Merges small neighbouring blocks of an array of the caller, from element `after` on, at most about 32 MiB of them.
-- {"merged": blocks that there are no more, "after": where to go on, null at the end}
create or replace function public.tensorage_compact(key text, after bigint default 0) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
  b record;
  first bigint;
  last bigint;
  total bigint := 0;
  moved bigint := 0;
  seen int := 0;
  merged int := 0;
begin
  select * into d from public.datasets s
   where s.user_id = tensorage.me() and s.key = tensorage_compact.key and s.state = 'committed' for update;
  if d.id is null then
    raise exception using errcode = 'TS001', message = format('you have no array %L', key);
  end if;
  for b in
    select t.index, t.count from public.tensors t
     where t.data_id = d.id and t.index >= tensorage_compact.after order by t.index
  loop
    seen := seen + 1;
    if first is not null and total + b.count <= d.chunk then
      last := b.index;
      total := total + b.count;
      merged := merged + 1;
      continue;
    end if;
    if first < last then
      perform tensorage.merge_blocks(d.id, first, last, total);
      moved := moved + total * d.itemsize;
    end if;
    if moved > 33554432 or seen > 65536 then
      return json_build_object('merged', merged, 'after', b.index);
    end if;
    first := b.index;
    last := b.index;
    total := b.count;
  end loop;
  if first < last then
    perform tensorage.merge_blocks(d.id, first, last, total);
  end if;
  return json_build_object('merged', merged, 'after', null);
end
$$;

-- Changes attributes of an array of the caller: `removed` go, `attrs` are set, all others go too if `replace` is set.
-- With set_dims, the names of its axes as well.
create or replace function public.tensorage_annotate(
  data_id bigint, attrs jsonb default '{}', removed text[] default '{}', replace boolean default false,
  dims text[] default null, set_dims boolean default false) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets;
begin
  update public.datasets s
     set attrs = (case when tensorage_annotate.replace then '{}' else s.attrs end - removed) || tensorage_annotate.attrs,
         dims = case when set_dims then tensorage_annotate.dims else s.dims end,
         version = s.version + 1, updated_at = now()
   where s.id = tensorage_annotate.data_id and s.user_id = tensorage.me() and s.state = 'committed' returning * into d;
  if d.id is null then
    if exists (select from public.datasets s
                where s.id = tensorage_annotate.data_id and s.is_shared and s.state = 'committed') then
      raise exception using errcode = 'TS007', message = 'the array belongs to somebody else';
    end if;
    raise exception using errcode = 'TS003', message = 'the array was replaced or deleted';
  end if;
  perform tensorage.settle();
  return tensorage.describe(d);
end
$$;

-- Gives an array of the caller another key.
create or replace function public.tensorage_rename(
  key text, new_key text, overwrite boolean default false, operation uuid default null) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  before json := tensorage.answered(operation);
  replaced bigint;
  d public.datasets;
begin
  if before is not null then
    return before;
  end if;
  -- In one order for all, so that two renamings to each other's keys do not wait for each other.
  perform tensorage.lock_key(least(key, new_key collate "C"));
  perform tensorage.lock_key(greatest(key, new_key collate "C"));
  select * into d from public.datasets s
   where s.user_id = tensorage.me() and s.key = tensorage_rename.key and s.state = 'committed' for update;
  if d.id is null then
    if exists (select from public.datasets s
                where s.key = tensorage_rename.key and s.is_shared and s.state = 'committed') then
      raise exception using errcode = 'TS007', message = format('the array %L belongs to somebody else', key);
    end if;
    raise exception using errcode = 'TS001', message = format('there is no array %L', key);
  elsif key = new_key then
    return tensorage.describe(d);
  elsif overwrite then
    replaced := tensorage.hide(new_key, d.id);
  end if;
  update public.datasets s
     set key = new_key, version = greatest(s.version, coalesce(replaced, 0)) + 1, updated_at = now()
   where s.id = d.id returning * into d;
  return tensorage.answer(operation, tensorage.describe_and_sweep(d));
exception when unique_violation then
  raise exception using errcode = 'TS002', message = format('the key %L is taken', new_key);
end
$$;

-- Execution rights: PostgreSQL gives every new function to everybody. --------------------------------------

do $$
declare
  f regprocedure;
begin
  for f in select p.oid from pg_proc p
            where p.pronamespace = 'tensorage'::regnamespace
               or (p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage_')) loop
    execute format('revoke all on function %s from public, anon, authenticated', f);
  end loop;
  -- Beside the functions of the API: what datasets.nbytes is computed with, for service_role, which may write the table.
  for f in select p.oid from pg_proc p
            where (p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage_'))
               or (p.pronamespace = 'tensorage'::regnamespace and p.proname in ('elements')) loop
    execute format('grant execute on function %s to authenticated, service_role', f);
  end loop;
end
$$;

notify pgrst, 'reload schema';
