-- tensorage: storing, appending and assigning elements of arrays of the engine "database".

-- Whole blocks -------------------------------------------------------------------------------------

-- Cuts the elements of a request into blocks of d. Sent twice, the same blocks stay as they are.
create or replace function tensorage.insert_blocks(
  d public.datasets, at_index bigint, elements bigint, block_size bigint, request bytea, elements_at int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
begin
  if d.engine <> 'database' then
    raise exception using errcode = 'TS006', message = format('%L is kept by engine %L, and not as rows', d.key, d.engine);
  elsif tensorage.is_ragged(d.dtype) then
    perform tensorage.insert_ragged(d, at_index, elements, request, elements_at);
    return;
  elsif octet_length(request) - elements_at <> elements * d.itemsize then
    raise exception using errcode = 'TS006',
      message = format('%s elements of %s are %s bytes, the request holds %s', elements, d.dtype,
                       elements * d.itemsize, octet_length(request) - elements_at);
  elsif block_size > d.block_size then
    raise exception using errcode = 'TS006',
      message = format('blocks of %s elements are too large for this array: its block_size is %s', block_size, d.block_size);
  end if;
  insert into public.tensors as t (data_id, user_id, index, count, tensor)
    select d.id, d.user_id, at_index + first, least(block_size, elements - first),
           substr(request, (elements_at + first * d.itemsize)::int + 1,
                  (least(block_size, elements - first) * d.itemsize)::int)
      from generate_series(0, elements - 1, block_size) as first
    on conflict (data_id, index) do update set count = excluded.count, tensor = excluded.tensor
      where t.count <> excluded.count or t.tensor <> excluded.tensor;
end
$$;

-- True if new blocks would overlap stored ones without replacing them whole: the array could never be complete, and could
-- hold any number of times the bytes that the quota was asked for.
create or replace function tensorage.cuts_blocks(
  d public.datasets, at_index bigint, elements bigint, block_size bigint) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
begin
  return exists (
    select from public.tensors t
     where t.data_id = d.id and t.index > at_index - d.block_size and t.index < at_index + elements
       and t.index + t.count > at_index
       and (t.index < at_index or t.index + t.count > at_index + elements or (t.index - at_index) % block_size <> 0));
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
    if tensorage.is_ragged(d.dtype) then
      perform tensorage.check_parts(d);
    end if;
    return;
  end if;
  select coalesce(sum(t.count), 0) into stored from public.tensors t where t.data_id = d.id;
  raise exception using errcode = 'TS004',
    message = format('%s of the %s elements of %L are there', stored, expected, d.key),
    detail = json_build_object('stored', stored, 'expected', expected)::text,
    hint = 'Send the missing blocks, or abort.';
end
$$;

-- Blocks of a staged dataset. Sent twice, they are stored once.
create or replace function public.tensorage_put(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  d public.datasets := tensorage.staged(h.data_id);
begin
  if d.assign_to is not null then
    raise exception using errcode = 'TS006', message = format('%L is being assigned to, not written', d.key);
  -- Nobody may know yet how many elements of any length will come.
  elsif h.index + h.count > tensorage.elements(d.shape) and not tensorage.is_ragged(d.dtype) then
    raise exception using errcode = 'TS006',
      message = format('elements %s to %s lie outside of the shape %s', h.index, h.index + h.count,
                       tensorage.shape_text(d.shape));
  elsif tensorage.cuts_blocks(d, h.index, h.count, h.block_size) then
    raise exception using errcode = 'TS006',
      message = format('elements %s to %s are stored in other blocks', h.index, h.index + h.count),
      hint = 'Send the same blocks again, or abort.';
  end if;
  if h.meta -> 'part' is not null then
    perform tensorage.put_part(d, h, $1);
  else
    perform tensorage.insert_blocks(d, h.index, h.count, h.block_size, $1, h.elements_at);
  end if;
  perform tensorage.settle();
  return json_build_object('id', d.id, 'index', h.index, 'count', h.count);
end
$$;

-- Stores a whole small array in one request. Its meta is the arguments of tensorage_begin.
create or replace function public.tensorage_store(bytea) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  h tensorage.header := tensorage.parse($1);
  operation uuid := (h.meta ->> 'operation')::uuid;
  before json := tensorage.answered(operation);
  d public.datasets;
begin
  if before is not null then
    return before;
  elsif h.meta ->> 'append' = 'true' then
    raise exception using errcode = 'TS006', message = 'rows are appended by tensorage_append, not stored';
  end if;
  d := tensorage.stage(h.meta, case when tensorage.is_ragged(h.meta ->> 'dtype') then tensorage.ragged_bytes($1, h.elements_at)
                                    else octet_length($1) - h.elements_at end);
  if h.count <> tensorage.elements(d.shape) then
    raise exception using errcode = 'TS004',
      message = format('%s elements do not fill the shape %s', h.count, tensorage.shape_text(d.shape));
  end if;
  perform tensorage.insert_blocks(d, 0, h.count, h.block_size, $1, h.elements_at);
  return tensorage.answer(operation, tensorage.describe_and_sweep(tensorage.announce(d), octet_length($1)));
end
$$;

-- Appending and merging ----------------------------------------------------------------------------

-- Most bytes of a block that smaller ones are merged into. If all elements have one length, the block_size says it, and no
-- block has more than these.
create or replace function tensorage.most_merged_bytes(d public.datasets) returns int
language sql immutable as $$ select case when tensorage.is_ragged(d.dtype) then 1048576 else 67108864 end $$;

-- Makes one block of those from `first` to `last`, `total` elements in all.
create or replace function tensorage.merge_blocks(d public.datasets, first bigint, last bigint, total bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if tensorage.is_ragged(d.dtype) then
    perform tensorage.merge_ragged(d.id, first, last, total);
    return;
  end if;
  delete from tensorage.written w where w.data_id = d.id and w.number > first and w.number <= last;
  with gone as (
    delete from public.tensors t where t.data_id = d.id and t.index > first and t.index <= last
    returning t.index, t.tensor)
  update public.tensors t set count = total,
         tensor = t.tensor || (select string_agg(g.tensor, '' order by g.index) from gone g)
   where t.data_id = d.id and t.index = first;
end
$$;

-- Notes that the blocks of an array from element `first` on were written, if it has a fill value.
create or replace function tensorage.note_blocks(d public.datasets, first bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  if d.fill is not null then
    insert into tensorage.written (data_id, number)
      select d.id, t.index from public.tensors t where t.data_id = d.id and t.index >= first on conflict do nothing;
  end if;
end
$$;

-- Merges the last blocks of an array while the last one is at least as large as the one before it: many small appends then
-- leave about log2 of them as blocks, and each element is rewritten about as many times. Elements that were never written may
-- lie between two blocks, which are not merged then.
create or replace function tensorage.merge_tail(d public.datasets) returns void
language plpgsql set search_path = pg_catalog, pg_temp
-- The last blocks first, along the index: without statistics, PostgreSQL would rather sort all of them.
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  first bigint;
  last bigint;
  total bigint := 0;
  nbytes bigint := 0;
  b record;
begin
  for b in
    select t.index, t.count, octet_length(t.tensor) as nbytes from public.tensors t where t.data_id = d.id order by t.index desc
  loop
    exit when last is not null and (
      b.nbytes > nbytes or b.nbytes + nbytes > tensorage.most_merged_bytes(d) or b.count + total > d.block_size
      or b.index + b.count <> first);
    first := b.index;
    last := coalesce(last, b.index);
    total := total + b.count;
    nbytes := nbytes + b.nbytes;
  end loop;
  if first < last then
    perform tensorage.merge_blocks(d, first, last, total);
  end if;
end
$$;

-- Adds rows at the end of an array, in one request. Meta: key, shape (of the rows), dtype, operation, owner (of somebody
-- else's array). The array's own block_size says where they are cut: the sender need not know it, nor that an array of Storage may
-- take them as loose rows.
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
  d := tensorage.find(h.meta ->> 'key', h.meta ->> 'owner', to_write => true);
  if d.id is null then
    perform tensorage.raise_missing(h.meta ->> 'key', h.meta ->> 'owner');
  end if;
  if d.engine = 'storage' then
    return tensorage.answer(operation, tensorage.describe(
      tensorage.append_loose(d.id, h.meta ->> 'key', added, h.meta ->> 'dtype', $1, h.elements_at)));
  end if;
  perform tensorage.check_append(d, h.meta ->> 'key', added, h.meta ->> 'dtype');
  if h.count <> tensorage.elements(added) then
    raise exception using errcode = 'TS004',
      message = format('%s elements do not fill the shape %s', h.count, tensorage.shape_text(added));
  end if;
  d := tensorage.extend(d.id, added[1], case when tensorage.is_ragged(d.dtype) then tensorage.ragged_bytes($1, h.elements_at)
                                             else h.count * d.itemsize end);
  perform tensorage.insert_blocks(d, tensorage.elements(d.shape) - h.count, h.count, d.block_size, $1, h.elements_at);
  perform tensorage.note_blocks(d, tensorage.elements(d.shape) - h.count);
  perform tensorage.merge_tail(d);
  return tensorage.answer(operation, tensorage.describe(d));
end
$$;

-- Merges small neighbouring blocks of an array of the caller, from element `after` on, at most about 32 MiB of them, and 4 MiB
-- where each element has an end to be written anew.
-- {"merged": blocks that there are no more, "after": where to go on, null at the end}
create or replace function public.tensorage_compact(key text, after bigint default 0) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  d public.datasets;
  b record;
  first bigint;
  last bigint;
  total bigint := 0;
  nbytes bigint := 0;
  moved bigint := 0;
  most_moved int;
  seen int := 0;
  merged int := 0;
begin
  -- A request that just replaces the array is waited for: else neither the old nor the new one would be found.
  perform tensorage.lock_key(key);
  select * into d from public.datasets s
   where s.user_id = tensorage.me() and s.key = tensorage_compact.key and s.state = 'committed' for update;
  if d.id is null then
    perform tensorage.raise_missing(key, null);
  end if;
  most_moved := case when tensorage.is_ragged(d.dtype) then 4194304 else 33554432 end;
  for b in
    select t.index, t.count, octet_length(t.tensor) as nbytes from public.tensors t
     where t.data_id = d.id and t.index >= tensorage_compact.after order by t.index
  loop
    seen := seen + 1;
    if first is not null and total + b.count <= d.block_size and nbytes + b.nbytes <= tensorage.most_merged_bytes(d)
       and b.index = first + total then
      last := b.index;
      total := total + b.count;
      nbytes := nbytes + b.nbytes;
      merged := merged + 1;
      continue;
    end if;
    if first < last then
      perform tensorage.merge_blocks(d, first, last, total);
      moved := moved + nbytes;
    end if;
    if moved > most_moved or seen > 65536 then
      return json_build_object('merged', merged, 'after', b.index);
    end if;
    first := b.index;
    last := b.index;
    total := b.count;
    nbytes := b.nbytes;
  end loop;
  if first < last then
    perform tensorage.merge_blocks(d, first, last, total);
  end if;
  return json_build_object('merged', merged, 'after', null);
end
$$;

-- Assigning ----------------------------------------------------------------------------------------

-- Places of the elements of a binary request, in order of position: lengths[i] elements at starts[i], which are those from
-- offsets[i] on among the elements of the request.
do $$
begin
  create type tensorage.spans as (starts bigint[], lengths bigint[], offsets bigint[]);
exception when duplicate_object then
  null; -- Applied before: a type has no "if not exists".
end
$$;

-- A list of positions from the meta of a request.
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

-- Places of the elements of an assignment. Meta: rows, runs and run_length as tensorage_read takes them, or starts and
-- lengths as tensorage_read_spans does.
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
    -- Checked before they are multiplied: two short lists may stand for more runs than there is memory.
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

-- A block with elements of a request put into their places. The spans are those that reach into it.
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

-- Blocks that spans may reach into: all from the first span to the last, or, where there would be many between few spans,
-- those that each span reaches into. A look-up takes about 15 us, passing by a block 2 us.
create or replace function tensorage.blocks_between(d public.datasets, s tensorage.spans)
returns table (index bigint, count int)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  n int := cardinality(s.starts);
  behind bigint := s.starts[n] + s.lengths[n];
begin
  if n * 15 > ((behind - s.starts[1]) / d.block_size + 1) * 2 then
    return query
      select t.index, t.count from public.tensors t
       where t.data_id = d.id and t.index > s.starts[1] - d.block_size and t.index < behind;
  else
    return query
      select distinct b.index, b.count
        from unnest(s.starts, s.lengths) p(at, length), lateral (
          select t.index, t.count from public.tensors t
           where t.data_id = d.id and t.index > p.at - d.block_size and t.index < p.at + p.length
           order by t.index) b;
  end if;
end
$$;

-- Blocks that an array with a fill value has yet to get, for spans to be written: parts of it without elements that spans reach
-- into, cut at multiples of block_size. Two requests that make one at the same time give it the same index.
create or replace function tensorage.blocks_to_make(d public.datasets, s tensorage.spans)
returns table (index bigint, count int)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  size bigint := tensorage.elements(d.shape);
  -- 128 MiB, if these are more than one block.
  most int := least(134217728 / (d.block_size * d.itemsize), 256);
  made int;
begin
  -- Before all the cells of a long span are listed.
  if (select sum((p.at + p.length - 1) / d.block_size - p.at / d.block_size) from unnest(s.starts, s.lengths) p(at, length)) > 65536 then
    raise exception using errcode = 'PT413', message = 'the assignment reaches into more than 65536 blocks',
      hint = 'Assign less at a time.';
  end if;
  return query
    select g.low, (g.high - g.low)::int
      from (select distinct cell * d.block_size as low, least((cell + 1) * d.block_size, size) as high
              from unnest(s.starts, s.lengths) p(at, length),
                   generate_series(p.at / d.block_size, (p.at + p.length - 1) / d.block_size) cell) c,
           lateral (
             select lag(b.high, 1, c.low) over (order by b.low) as low, b.low as high
               from (select greatest(t.index, c.low) as low, least(t.index + t.count, c.high) as high from public.tensors t
                      where t.data_id = d.id and t.index > c.low - d.block_size and t.index < c.high
                        and t.index + t.count > c.low
                     union all
                     select c.high, c.high) b) g
     where g.low < g.high and exists (
       -- The last span that begins before the end of the block is the one that reaches furthest into it.
       select from width_bucket(g.high - 1, s.starts) i where i > 0 and s.starts[i] + s.lengths[i] > g.low);
  get diagnostics made = row_count;
  -- A short request could otherwise make any number of long blocks. A client that meets this asks for half as much at a time.
  if made > most then
    raise exception using errcode = 'PT413', message = format('the assignment makes more than %s blocks', most),
      hint = 'Assign less at a time.';
  end if;
end
$$;

-- Blocks that spans reach into, in order: those that are there, and those that are to be made.
create or replace function tensorage.blocks_to_patch(d public.datasets, s tensorage.spans)
returns table (index bigint, count int, is_new boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  if d.fill is null then
    return query select b.index, b.count, false from tensorage.blocks_between(d, s) b order by 1;
    return;
  end if;
  return query
    select b.index, b.count, false from tensorage.blocks_between(d, s) b
    union all
    select m.index, m.count, true from tensorage.blocks_to_make(d, s) m
    order by 1;
end
$$;

-- Makes the copy of a block for a staged assignment, or nothing if there is one. Notes the block that it was made from, as it was
-- at that moment.
create or replace function tensorage.copy_block(
  d public.datasets, into_id bigint, index bigint, count int, touched tensorage.spans, request bytea, elements_at int)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  row_version bigint;
begin
  with source as materialized (
    select t.index, t.count, t.tensor || ''::bytea as tensor, t.xmin::text::bigint as row_version from public.tensors t
     where t.data_id = d.id and t.index = copy_block.index and t.count = copy_block.count
  ), copy as (
    insert into public.tensors (data_id, user_id, index, count, tensor)
      select into_id, d.user_id, o.index, o.count,
             tensorage.patched(o.tensor, o.index, o.count, d.itemsize, touched, request, elements_at) from source o
      on conflict (data_id, index) do nothing
    returning 1
  )
  select o.row_version into row_version from source o, copy;
  if found and d.fill is not null then
    insert into tensorage.written (data_id, number, based_on) values (into_id, copy_block.index, row_version);
  end if;
  return row_version is not null;
end
$$;

-- Makes a block that an array with a fill value, or a staged assignment to one, has not had yet. Returns false if somebody else
-- has just made it. Raises if the array has had blocks there, which were lost, unless spans cover the whole of this one: the
-- fill value would stand for elements that were written.
create or replace function tensorage.make_block(
  d public.datasets, into_id bigint, index bigint, count int, touched tensorage.spans, request bytea, elements_at int)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
#variable_conflict use_column
begin
  if exists (
       select from tensorage.written w
        where w.data_id = d.id and w.number >= make_block.index and w.number < make_block.index + make_block.count
          and not exists (select from public.tensors t where t.data_id = d.id and t.index = w.number))
     and (select sum(least(p.at + p.length, make_block.index + make_block.count) - greatest(p.at, make_block.index))
            from unnest(touched.starts, touched.lengths) p(at, length)) <> make_block.count then
    raise exception using errcode = 'TS004', message = 'not all elements that were written are there',
      hint = 'Blocks of the array were deleted behind its back.';
  end if;
  insert into public.tensors (data_id, user_id, index, count, tensor)
    values (into_id, d.user_id, make_block.index, make_block.count,
            tensorage.patched(tensorage.fill_of(d, make_block.count), make_block.index, make_block.count, d.itemsize, touched, request, elements_at))
    on conflict (data_id, index) do nothing;
  if not found then
    return false;
  end if;
  insert into tensorage.written (data_id, number) values (into_id, make_block.index) on conflict do nothing;
  return true;
end
$$;

-- Puts the elements of a request into their places: in the blocks of d itself, or (`into_id` is another, staged dataset) in
-- copies of them, which are made where there is none yet. Returns the bytes of new blocks.
create or replace function tensorage.patch(
  d public.datasets, into_id bigint, s tensorage.spans, request bytea, elements_at int) returns numeric
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  n int := cardinality(s.starts);
  missing bigint := (select sum(length) from unnest(s.lengths) length);
  made_bytes numeric := 0;
  touched tensorage.spans;
  b record;
begin
  perform tensorage.check_one_length(d);
  if octet_length(request) - elements_at <> missing * d.itemsize then
    raise exception using errcode = 'TS006',
      message = format('%s elements of %s are %s bytes, the request holds %s', missing, d.dtype,
                       missing * d.itemsize, octet_length(request) - elements_at);
  elsif d.fill is not null and s.starts[n] + s.lengths[n] > tensorage.elements(d.shape) then
    raise exception using errcode = 'TS003', message = format('the array %L has become shorter since it was opened', d.key);
  end if;
  for b in
    select t.index, t.count, t.is_new, w.low, w.high
      from tensorage.blocks_to_patch(d, s) t, lateral (
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
    if b.is_new then
      if tensorage.make_block(d, into_id, b.index, b.count, touched, request, elements_at) then
        made_bytes := made_bytes + b.count::numeric * d.itemsize;
        continue;
      end if;
    elsif into_id <> d.id then
      continue when tensorage.copy_block(d, into_id, b.index, b.count, touched, request, elements_at);
    end if;
    update public.tensors t
       set tensor = tensorage.patched(t.tensor || ''::bytea, t.index, t.count, d.itemsize, touched, request, elements_at)
     where t.data_id = into_id and t.index = b.index and t.count = b.count;
    -- The block may be gone: appends go on while copies are made, and may just have merged the last blocks.
    if not found then
      raise exception using errcode = 'TS003', message = format('the array %L has changed while it was assigned to', d.key);
    end if;
  end loop;
  if missing <> 0 then
    raise exception using errcode = 'TS004',
      message = format('%s elements that were to be assigned are not there', missing),
      hint = 'The selection lies outside of the array, or its blocks were deleted behind its back.';
  end if;
  return made_bytes;
end
$$;

-- Changes elements of an array, in one request. Header: data_id. Meta: version, operation, the places of the elements, and what
-- the client remembers of the array, for tensorage.is_as_known.
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
  d := tensorage.assignable(h.data_id, (h.meta ->> 'version')::bigint, known => (h.meta -> 'known')::jsonb);
  return tensorage.answer(operation, tensorage.describe(tensorage.changed(
    d.id, tensorage.patch(d, d.id, tensorage.parse_spans(h), $1, h.elements_at))));
end
$$;

-- Elements of a staged assignment. Header: data_id, of the staged dataset. Meta: the places of the elements.
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
  -- This lock keeps its blocks from being swept, and lets appends through.
  select * into target from public.datasets t where t.id = d.assign_to and t.state = 'committed' for key share;
  if target.id is null or (target.fill is not null) <> (d.fill is not null)
     or (d.fill is null and target.stable_since > d.assign_version) then
    raise exception using errcode = 'TS003', message = format('the array %L has changed while it was assigned to', d.key);
  end if;
  perform tensorage.patch(target, d.id, tensorage.parse_spans(h), $1, h.elements_at);
  perform tensorage.settle();
  return json_build_object('id', d.id, 'count', h.count);
end
$$;

-- True if the blocks that a staged assignment has copies of are still as they were, and those that it has made are still
-- missing. If there is a fill value, other blocks may have been written meanwhile; if not, rows may have been appended.
create or replace function tensorage.is_still_based_on(d public.datasets, target public.datasets) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  -- A subquery for each block, not a join: PostgreSQL might read all blocks of the array for a join.
  if (target.fill is not null) <> (d.fill is not null) then
    return false;
  elsif target.fill is null then
    return target.stable_since <= d.assign_version and not exists (
      select from public.tensors s
       where s.data_id = d.id and s.count is distinct from (
         select t.count from public.tensors t where t.data_id = target.id and t.index = s.index));
  end if;
  return not exists (
    select from tensorage.written w
     where w.data_id = d.id and w.based_on is distinct from (
       select t.xmin::text::bigint from public.tensors t where t.data_id = target.id and t.index = w.number))
    -- A block that was made here may have been made by somebody else, too, and merged with the one before it since then. Blocks
    -- do not overlap, so the last one that begins before its end tells.
    and not exists (
      select from tensorage.written w join public.tensors s on s.data_id = w.data_id and s.index = w.number
       where w.data_id = d.id and w.based_on is null and s.index < (
         select t.index + t.count from public.tensors t where t.data_id = target.id and t.index < s.index + s.count
          order by t.index desc limit 1))
    and not exists (
      select from public.tensors s where s.data_id = d.id and s.index + s.count > tensorage.elements(target.shape));
end
$$;

-- Puts the changed copies of a staged assignment in place of the blocks that they were made from.
create or replace function tensorage.publish_assignment(d public.datasets) returns public.datasets
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  target public.datasets;
  replaced bigint;
  made_bytes numeric;
begin
  select * into target from public.datasets t where t.id = d.assign_to and t.state = 'committed' for update;
  if target.id is null or not tensorage.is_still_based_on(d, target) then
    raise exception using errcode = 'TS003', message = format('the array %L has changed while it was assigned to', d.key);
  end if;
  -- The old blocks go to an expired dataset, to be swept piece by piece: deleting many takes longer than a statement may.
  replaced := tensorage.dataset_to_sweep(d);
  update public.tensors t set data_id = replaced
   where t.data_id = target.id and t.index = any (array(select s.index from public.tensors s where s.data_id = d.id));
  select coalesce(sum(s.count::numeric * d.itemsize), 0) into made_bytes
    from tensorage.written w join public.tensors s on s.data_id = w.data_id and s.index = w.number
   where w.data_id = d.id and w.based_on is null;
  update public.tensors t set data_id = target.id where t.data_id = d.id;
  insert into tensorage.written (data_id, number)
    select target.id, w.number from tensorage.written w where w.data_id = d.id on conflict do nothing;
  perform tensorage.delete_dataset(d.id);
  return tensorage.changed(target.id, made_bytes);
end
$$;
