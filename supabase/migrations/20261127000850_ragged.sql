-- tensorage: arrays whose elements have any length, of the engine "database": text, bytes, and ragged arrays.
--
-- A block of such an array holds whole elements: first a table with the end of each of them, counted in bytes from the end of
-- the table, as 4 bytes each, big-endian, as int4send writes them; then the elements. One element is read by two calls of
-- substr(), one for its part of the table and one for its bytes.
--
-- In a request, blocks follow each other, each behind 8 bytes: the number of its elements, and that of their bytes without
-- the table. The blocks of a client have about a mebibyte. A block that has more elements than the array's block_size is cut.

-- Raises for an array whose elements have any length: the caller takes them to have one.
create or replace function tensorage.check_one_length(d public.datasets) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if tensorage.is_ragged(d.dtype) then
    raise exception using errcode = 'TS006',
      message = format('the elements of %L have any length', d.key),
      hint = 'They are read by tensorage_read_ragged, stored and appended, and not assigned to.';
  end if;
end
$$;

-- Bytes of the blocks of a dataset of the database.
create or replace function tensorage.block_bytes(d public.datasets) returns numeric
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
  if tensorage.is_ragged(d.dtype) then
    return (select coalesce(sum(octet_length(t.tensor)), 0) from public.tensors t where t.data_id = d.id);
  end if;
  return d.nbytes;
end
$$;

-- Four bytes of a table as a number. It is negative from 2^31 on, which is more than any block has.
create or replace function tensorage.end_at(ends bytea, at int) returns int
language sql immutable as $$
  select (get_byte(ends, at) << 24) + (get_byte(ends, at + 1) << 16) + (get_byte(ends, at + 2) << 8) + get_byte(ends, at + 3)
$$;

-- Checks of what is written ------------------------------------------------------------------------

-- True if a few bytes are text in UTF-8. PostgreSQL takes no NUL characters, which other texts may hold: they are exchanged first.
create or replace function tensorage.is_short_utf8(bytes bytea) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if position('\x00'::bytea in bytes) > 0 then
    -- Each backslash that is none of an escape is doubled.
    bytes := decode(replace(replace(encode(bytes, 'escape'), '\\', '__'), '\000', '_'), 'escape');
  end if;
  perform convert_from(bytes, 'UTF8');
  return true;
exception when data_exception or character_not_in_repertoire then
  return false;
end
$$;

-- True if bytes, from byte `first` on, are text in UTF-8. Looks at a mebibyte at a time: a long text with a NUL character would take
-- many times its size in memory. From a value that is out of line, substr() reads the part alone.
create or replace function tensorage.is_utf8(bytes bytea, first int default 1) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  behind int := octet_length(bytes) + 1;
  cut int;
begin
  while first < behind loop
    cut := least(first + 1048576, behind);
    -- No part begins within a character, which has at most 4 bytes.
    for i in 1 .. 3 loop
      exit when cut = behind or get_byte(substr(bytes, cut, 1), 0) & 192 <> 128;
      cut := cut - 1;
    end loop;
    if not tensorage.is_short_utf8(substr(bytes, first, cut - first)) then
      return false;
    end if;
    first := cut;
  end loop;
  return true;
end
$$;

-- Raises unless a block holds `count` elements of this dtype.
create or replace function tensorage.check_ragged_block(dtype text, block bytea, count int) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  unit int := tensorage.ragged_unit(dtype);
  ends bytea := substr(block, 1, 4 * count);
  nbytes int := octet_length(block) - 4 * count;
  fits boolean;
  elements bytea;
begin
  select bool_and(e.behind >= e.at and e.at >= 0 and (e.behind - e.at) % unit = 0) into fits
    from (select case when i = 0 then 0 else tensorage.end_at(ends, 4 * i - 4) end as at, tensorage.end_at(ends, 4 * i) as behind
            from generate_series(0, count - 1) i) e;
  if fits is not true or tensorage.end_at(ends, 4 * count - 4) <> nbytes then
    raise exception using errcode = 'TS006',
      message = format('a block of %s elements of %s has ends that do not fit its %s bytes', count, dtype, nbytes);
  elsif tensorage.is_text(dtype) then
    elements := substr(block, 4 * count + 1);
    -- Valid as a whole, and no element begins within a character: then each of them is valid.
    if not tensorage.is_utf8(elements) or exists (
         select from (select tensorage.end_at(ends, 4 * i) as at from generate_series(0, count - 2) i offset 0) e
          where e.at < nbytes and get_byte(elements, e.at) & 192 = 128) then
      raise exception using errcode = 'TS006', message = 'a block of text holds bytes that are no text in UTF-8';
    end if;
  end if;
end
$$;

-- Storing ------------------------------------------------------------------------------------------

-- Bytes of all blocks of a request, which begin at `at`, without the 8 bytes before each of them.
create or replace function tensorage.ragged_bytes(request bytea, at int) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  total bigint := 0;
  next bigint := at;
  block_bytes bigint;
begin
  while next + 8 <= octet_length(request) loop
    block_bytes := 4 * tensorage.integer_at(request, next::int, 4) + tensorage.integer_at(request, next::int + 4, 4);
    total := total + block_bytes;
    next := next + 8 + block_bytes;
  end loop;
  return total;
end
$$;

-- `wanted` elements of a block, from its element `first` on, as a block of their own.
create or replace function tensorage.part_of_block(block bytea, count int, first int, wanted int) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  base int := case when first = 0 then 0 else tensorage.end_at(block, 4 * first - 4) end;
begin
  if wanted = count then
    return block;
  end if;
  return (select string_agg(int4send(tensorage.end_at(block, 4 * i) - base), '' order by i)
            from generate_series(first, first + wanted - 1) i)
         || substr(block, 4 * count + base + 1, tensorage.end_at(block, 4 * (first + wanted) - 4) - base);
end
$$;

-- Stores the blocks of a request from element `at_index` on, `elements` of them. Sent twice, the same blocks stay as they are.
create or replace function tensorage.insert_ragged(
  d public.datasets, at_index bigint, elements bigint, request bytea, elements_at int) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  at bigint := elements_at;
  first bigint := at_index;
  wanted bigint;
  nbytes bigint;
  block bytea;
  nearest record;
begin
  while at < octet_length(request) loop
    if at + 8 > octet_length(request) then
      raise exception using errcode = 'TS006', message = 'the request ends within the head of a block';
    end if;
    wanted := tensorage.integer_at(request, at::int, 4);
    nbytes := tensorage.integer_at(request, at::int + 4, 4);
    -- Each element has to fit an answer, with what goes before it.
    if wanted = 0 or 4 * wanted + nbytes > least(octet_length(request) - at - 8, 16700000) then
      raise exception using errcode = 'TS006',
        message = format('a block of %s elements and %s bytes does not fit the request, or an answer', wanted, nbytes);
    end if;
    block := substr(request, at::int + 9, (4 * wanted + nbytes)::int);
    perform tensorage.check_ragged_block(d.dtype, block, wanted::int);
    -- Stored blocks do not overlap each other, so the last one that begins before the end of this one tells.
    select t.index, t.count into nearest from public.tensors t
     where t.data_id = d.id and t.index < first + wanted order by t.index desc limit 1;
    if nearest.index + nearest.count > first and wanted <= d.block_size and (nearest.index, nearest.count) <> (first, wanted) then
      raise exception using errcode = 'TS006',
        message = format('elements %s to %s are stored in other blocks', first, first + wanted),
        hint = 'Send the same blocks again, or abort.';
    end if;
    insert into public.tensors as t (data_id, user_id, index, count, tensor)
      select d.id, d.user_id, first + i, p.count, tensorage.part_of_block(block, wanted::int, i::int, p.count)
        from generate_series(0, wanted - 1, d.block_size) i, lateral (select least(d.block_size, wanted - i)::int as count) p
      on conflict (data_id, index) do update set count = excluded.count, tensor = excluded.tensor
        where t.count <> excluded.count or t.tensor <> excluded.tensor;
    at := at + 8 + 4 * wanted + nbytes;
    first := first + wanted;
  end loop;
  if first - at_index <> elements then
    raise exception using errcode = 'TS006',
      message = format('the blocks of the request have %s elements, its header says %s', first - at_index, elements);
  end if;
end
$$;

-- Stores a part of an element that is too long for one request, as a block of its own. Meta: part, the position of its bytes
-- in the element. The parts come in order, and one that comes twice is stored once. The body: the head of the block, with
-- the bytes of the whole element, and those of the part: at most about 256 parts, since each rewrites those before it. The
-- commit checks that no part is missing, and that text is text.
create or replace function tensorage.put_part(d public.datasets, h tensorage.header, request bytea) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  part numeric := (h.meta ->> 'part')::numeric;
  nbytes bigint := case when octet_length(request) >= h.elements_at + 8 then tensorage.integer_at(request, h.elements_at + 4, 4) end;
  bytes bytea := substr(request, h.elements_at + 9);
  stored record;
begin
  if (tensorage.is_ragged(d.dtype) and h.count = 1 and tensorage.integer_at(request, h.elements_at, 4) = 1
      and nbytes between tensorage.least_in_parts() and 268435456 and nbytes % tensorage.ragged_unit(d.dtype) = 0
      and octet_length(bytes) > 0 and part between 0 and nbytes - octet_length(bytes)
      -- A request of one byte would otherwise make the server write all bytes before it anew.
      and (256 * octet_length(bytes)::bigint >= nbytes or part + octet_length(bytes) = nbytes)) is not true then
    raise exception using errcode = 'TS006',
      message = format('%s bytes from byte %s on are no part of an element of %s bytes', octet_length(bytes), part, nbytes);
  end if;
  select t.index, t.count, octet_length(t.tensor) - 4 as nbytes into stored from public.tensors t
   where t.data_id = d.id and t.index <= h.index order by t.index desc limit 1;
  if part = 0 and coalesce(stored.index + stored.count <= h.index, true) then
    insert into public.tensors (data_id, user_id, index, count, tensor)
      values (d.id, d.user_id, h.index, 1, int4send(nbytes::int) || bytes) on conflict (data_id, index) do nothing;
  elsif (stored.index, stored.count) is distinct from (h.index, 1) or stored.nbytes < part then
    raise exception using errcode = 'TS006', message = format('a part from byte %s on does not follow what is stored', part);
  elsif stored.nbytes = part then
    -- The same part may come twice at a time: the second one waits for the first, and finds a longer block then.
    update public.tensors t set tensor = t.tensor || bytes
     where t.data_id = d.id and t.index = h.index and octet_length(t.tensor) = 4 + part;
  end if;
end
$$;

-- Fewest bytes of an element that comes in parts.
create or replace function tensorage.least_in_parts() returns int language sql immutable as $$ select 1048576 $$;

-- Raises if an element that came in parts is not complete, or is no text in UTF-8 where it ought to be.
create or replace function tensorage.check_parts(d public.datasets) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  b record;
begin
  for b in
    select t.index, octet_length(t.tensor) - 4 as nbytes, tensorage.end_at(substr(t.tensor, 1, 4), 0) as behind
      from public.tensors t where t.data_id = d.id and t.count = 1
  loop
    if b.nbytes <> b.behind then
      raise exception using errcode = 'TS004',
        message = format('%s of the %s bytes of element %s of %L are there', b.nbytes, b.behind, b.index, d.key),
        hint = 'Send the missing parts, or abort.';
    elsif b.nbytes >= tensorage.least_in_parts() and tensorage.is_text(d.dtype) and not (
            select tensorage.is_utf8(t.tensor, 5) from public.tensors t where t.data_id = d.id and t.index = b.index) then
      raise exception using errcode = 'TS006', message = format('element %s of %L is no text in UTF-8', b.index, d.key);
    end if;
  end loop;
end
$$;

-- Says how many elements a staged dataset has, whose shape nobody knew when it was begun: samples may come without end.
-- All axes but the first stay as they were declared. The commit checks that all elements are there. Shards have numbers that
-- depend on the shape, so that it is told before them.
create or replace function public.tensorage_end_ragged(data_id bigint, shape bigint[]) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  d public.datasets;
begin
  -- Locked for the change below before tensorage.staged takes a lock that several requests may hold: each would then wait for
  -- the other.
  select * into d from public.datasets s
   where s.id = tensorage_end_ragged.data_id and s.writer = tensorage.me() for update;
  d := tensorage.staged(data_id, d.engine);
  if not tensorage.is_ragged(d.dtype) or cardinality(d.shape) = 0 or cardinality(d.shape) is distinct from cardinality(shape)
     or d.shape[2:] is distinct from shape[2:] or (shape[1] >= 0) is not true or d.assign_to is not null
     or exists (select from public.shards s where s.data_id = d.id) then
    raise exception using errcode = 'TS006',
      message = format('the array %L of shape %s cannot be given the shape %s', d.key, tensorage.shape_text(d.shape),
                       tensorage.shape_text(shape));
  end if;
  update public.datasets s set shape = tensorage_end_ragged.shape where s.id = d.id returning * into d;
  return tensorage.describe(d);
end
$$;

-- Merging ------------------------------------------------------------------------------------------

-- Makes one block of those from `first` to `last`, `total` elements in all: one table, then all elements.
create or replace function tensorage.merge_ragged(id bigint, first bigint, last bigint, total bigint) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  with parts as materialized (
    select t.index, t.count, t.tensor || ''::bytea as block from public.tensors t
     where t.data_id = id and t.index >= first and t.index <= last),
  placed as materialized (
    select p.*, (sum(octet_length(p.block) - 4 * p.count) over (order by p.index)
                 - (octet_length(p.block) - 4 * p.count))::int as base from parts p),
  merged as materialized (
    select string_agg(case when p.base = 0 then substr(p.block, 1, 4 * p.count) else (
                        select string_agg(int4send(p.base + tensorage.end_at(p.block, 4 * i)), '' order by i)
                          from generate_series(0, p.count - 1) i) end, '' order by p.index)
           || string_agg(substr(p.block, 4 * p.count + 1), '' order by p.index) as block
      from placed p),
  gone as (
    delete from public.tensors t where t.data_id = id and t.index > first and t.index <= last)
  update public.tensors t set count = total, tensor = m.block from merged m where t.data_id = id and t.index = first
$$;

-- Reading ------------------------------------------------------------------------------------------

-- Pieces of an array, each of consecutive elements of one block.
--   heads     of each piece, 8 bytes: the number of its elements, and the end of the element before its first
--   ends      of all elements of one piece after the other, as they stand in the tables
--   blocks, starts, sizes    of each piece: its block, and the place of its bytes there
--   elements, nbytes         of all pieces
do $$
begin
  create type tensorage.ragged_pieces as (
    pieces bigint, heads bytea, ends bytea, blocks bigint[], starts int[], sizes int[], elements bigint, nbytes bigint);
exception when duplicate_object then
  null; -- Applied before: a type has no "if not exists".
end
$$;

-- The pieces with the elements at starts[i] .. + lengths[i] - 1, for every i. Looks at tables alone.
create or replace function tensorage.find_ragged(d public.datasets, starts bigint[], lengths bigint[])
returns tensorage.ragged_pieces
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  found tensorage.ragged_pieces;
begin
  -- A block is found as the last one that begins at or before an element. To look back as far as a block may reach would
  -- pass by thousands where each append was small. Each "order by" and "offset 0" keeps a subquery from being merged with
  -- the query round it: it is answered for one piece after the other.
  select count(*), string_agg(int4send(q.wanted) || int4send(q.base), ''), string_agg(substr(q.ends, q.skipped + 1), ''),
         array_agg(q.index), array_agg(4 * q.count + q.base + 1),
         array_agg(tensorage.end_at(q.ends, q.skipped + 4 * q.wanted - 4) - q.base),
         sum(q.wanted), sum(tensorage.end_at(q.ends, q.skipped + 4 * q.wanted - 4) - q.base)
    into found
    from (select s.*, case when s.skipped = 0 then 0 else tensorage.end_at(s.ends, 0) end as base
            from unnest(starts, lengths) p(at, length), lateral (
              select b.index from public.tensors b where b.data_id = d.id and b.index <= p.at
               order by b.index desc limit 1) f, lateral (
              select t.index, t.count, w.wanted, case when w.first = 0 then 0 else 4 end as skipped,
                     substr(t.tensor, greatest(4 * w.first - 3, 1), 4 * w.wanted + case when w.first = 0 then 0 else 4 end) as ends
                from public.tensors t, lateral (
                  select (greatest(p.at, t.index) - t.index)::int as first,
                         (least(p.at + p.length, t.index + t.count) - greatest(p.at, t.index))::int as wanted) w
               where t.data_id = d.id and t.index >= f.index and t.index < p.at + p.length and t.index + t.count > p.at
               order by t.index) s
           offset 0) q;
  return found;
end
$$;

-- The array to read from, after the checks of what is asked for.
create or replace function tensorage.ragged(
  data_id bigint, version bigint, starts bigint[], lengths bigint[], known jsonb default null)
returns public.datasets
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets := tensorage.readable(data_id, version, known => known);
  wanted numeric;
  are_inside boolean;
begin
  if not tensorage.is_ragged(d.dtype) then
    raise exception using errcode = 'TS006', message = format('the elements of %L have one length, %s bytes', d.key, d.itemsize),
      hint = 'They are read by tensorage_read and tensorage_read_spans.';
  end if;
  perform tensorage.check_pieces(greatest(cardinality(starts), cardinality(lengths)));
  select coalesce(sum(length), 0), coalesce(bool_and(at >= 0 and length >= 1 and at::numeric + length <= d.nbytes), true)
    into wanted, are_inside
    from unnest(starts, lengths) s(at, length);
  if (cardinality(starts) = cardinality(lengths)) is not true
     or exists (select from unnest(starts, lengths) s(at, length) where at is null or length is null) then
    raise exception using errcode = 'TS006', message = 'the selection has runs or lengths that are none';
  elsif wanted > 2097152 then
    raise exception using errcode = 'PT413',
      message = format('%s elements are too many for one request', wanted), hint = 'Ask for less at a time.';
  elsif not are_inside then
    raise exception using errcode = 'TS004', message = format('the selection lies outside of the array of %s', d.nbytes);
  end if;
  return d;
end
$$;

-- Raises unless all elements that were asked for were found.
create or replace function tensorage.check_found(found tensorage.ragged_pieces, lengths bigint[]) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  wanted bigint := (select sum(length) from unnest(lengths) length);
begin
  if found.elements is distinct from wanted or octet_length(found.ends) <> 4 * wanted then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s elements asked for are there', coalesce(found.elements, 0), coalesce(wanted, 0)),
      hint = 'Blocks of the array were deleted behind its back.';
  end if;
end
$$;

-- The elements at starts[i] .. + lengths[i] - 1, for every i, of an array whose elements have any length. The answer: 4 bytes,
-- the number of pieces; the heads of the pieces and the ends of the elements, as tensorage.ragged_pieces has them; and the
-- bytes of the elements. Answers 413 where that would be more than 16 MiB.
-- If `part` and `most` are given, the answer is nothing but so many bytes of a single element, from byte `part` on.
create or replace function public.tensorage_read_ragged(
  data_id bigint, version bigint, starts bigint[], lengths bigint[], part bigint default null, most int default null,
  known jsonb default null)
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  d public.datasets := tensorage.ragged(data_id, version, starts, lengths, known);
  found tensorage.ragged_pieces;
  elements bytea;
begin
  if cardinality(starts) = 0 then
    return int4send(0);
  end if;
  found := tensorage.find_ragged(d, starts, lengths);
  perform tensorage.check_found(found, lengths);
  if part is not null or most is not null then
    if (found.elements = 1 and part between 0 and found.nbytes and most between 1 and 16777216) is not true then
      raise exception using errcode = 'TS006', message = format('%s bytes from byte %s on are no part of an element', most, part);
    end if;
    return (select substr(t.tensor, found.starts[1] + part::int, least(most, found.sizes[1] - part)::int)
              from public.tensors t where t.data_id = d.id and t.index = found.blocks[1]);
  elsif found.nbytes + 4 * found.elements + 8 * found.pieces > 16777216 then
    raise exception using errcode = 'PT413',
      message = format('%s elements of %s bytes are too much for one request', found.elements, found.nbytes),
      hint = 'Ask for fewer at a time.';
  end if;
  select string_agg(e.piece, '') into elements
    from unnest(found.blocks, found.starts, found.sizes) b(index, at, size), lateral (
      select substr(t.tensor, b.at, b.size) as piece from public.tensors t
       where t.data_id = d.id and t.index = b.index offset 0) e;
  if octet_length(elements) is distinct from found.nbytes then
    raise exception using errcode = 'TS004',
      message = format('%s of the %s bytes asked for are there', coalesce(octet_length(elements), 0), found.nbytes),
      hint = 'Blocks of the array were changed behind its back.';
  end if;
  return int4send(found.pieces::int) || found.heads || found.ends || elements;
end
$$;

-- The lengths of the same elements in bytes: the answer of tensorage_read_ragged without the elements.
create or replace function public.tensorage_ragged_lengths(data_id bigint, version bigint, starts bigint[], lengths bigint[])
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  d public.datasets := tensorage.ragged(data_id, version, starts, lengths);
  found tensorage.ragged_pieces;
begin
  if cardinality(starts) = 0 then
    return int4send(0);
  end if;
  found := tensorage.find_ragged(d, starts, lengths);
  perform tensorage.check_found(found, lengths);
  return int4send(found.pieces::int) || found.heads || found.ends;
end
$$;
