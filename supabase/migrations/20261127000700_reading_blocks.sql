-- tensorage: reading elements of arrays of the engine "database".
--
-- No block is longer than d.block_size: a block that reaches into a run begins less than d.block_size before it. Readers walk along the
-- index of blocks. The settings of the functions of the API keep PostgreSQL to it: for a small or a new table, it would
-- rather read all rows and sort the wanted ones with their bytes, which takes twice as long, and a file if they are many.

-- Checks of what is asked for ----------------------------------------------------------------------

-- Raises unless `elements` may be asked for, of which the first is at `first` and the last one before `behind`. These are
-- computed from any numbers that a client sends: hence numerics. After this check, no sum of positions overflows.
create or replace function tensorage.check_wanted(
  d public.datasets, elements numeric, first numeric, behind numeric) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  perform tensorage.check_one_length(d);
  if elements is null then
    raise exception using errcode = 'TS006', message = 'the selection has rows, runs or lengths that are none';
  -- The server holds the answer several times, and a request may name the same few bytes again and again.
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

-- Raises unless the answer has all bytes that were asked for.
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

-- True if reading whole blocks, once each, is faster than looking up each piece: a look-up of a piece takes about 15 us, a
-- block 10 us and 0.5 ms for each MiB, passing by a block that holds none of the pieces 2 us. Not worth asking for less than
-- a few hundred pieces: to find it out would take longer than is saved.
create or replace function tensorage.is_dense(d public.datasets, pieces numeric, blocks numeric, extent numeric) returns boolean
language sql immutable as $$
  select pieces * 15 > least(blocks, extent / d.block_size + 1) * (10 + d.block_size::numeric * d.itemsize / 2048)
                       + (extent / d.block_size + 1) * 2
$$;

-- True if no span reaches into the next one.
create or replace function tensorage.are_in_order(starts bigint[], lengths bigint[]) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
begin
  return not exists (
    select from unnest(starts[:cardinality(starts) - 1], lengths[:cardinality(starts) - 1], starts[2:]) s(at, length, next)
     where s.at + s.length > s.next);
end
$$;

-- True if positions follow each other at no less than this distance.
create or replace function tensorage.are_apart(positions bigint[], distance bigint) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
begin
  return not exists (
    select from unnest(positions[:cardinality(positions) - 1], positions[2:]) p(at, next) where p.next - p.at < distance);
end
$$;

-- Gathering elements -------------------------------------------------------------------------------

-- The elements at starts[i] .. + lengths[i] - 1, for every i. Looks up each piece on its own.
create or replace function tensorage.gather(d public.datasets, starts bigint[], lengths bigint[]) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  answer bytea;
begin
  -- "order by" keeps the subquery from being merged with the query round it: it is answered for one piece after the
  -- other, in the order of the index.
  answer := (
    select string_agg(s.piece, '')
      from unnest(starts, lengths) p(at, length), lateral (
        select substr(t.tensor,
                      (greatest(p.at - t.index, 0) * d.itemsize)::int + 1,
                      ((least(t.index + t.count, p.at + p.length) - greatest(t.index, p.at)) * d.itemsize)::int
               ) as piece
          from public.tensors t
         where t.data_id = d.id and t.index > p.at - d.block_size and t.index < p.at + p.length
           and t.index + t.count > p.at
         order by t.index) s);
  -- Most parts of an array with a fill value are written before they are read, and read like any others.
  if d.fill is not null
     and coalesce(octet_length(answer), 0) < d.itemsize * (select coalesce(sum(length), 0) from unnest(lengths) length) then
    return tensorage.gather_filled(d, starts, lengths);
  end if;
  return answer;
end
$$;

-- The same elements from blocks that are read whole, once each. The spans are in order, and none overlaps the next.
create or replace function tensorage.gather_dense(d public.datasets, starts bigint[], lengths bigint[]) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  n int := cardinality(starts);
  answer bytea;
begin
  -- "offset 0" keeps the blocks in order, and makes PostgreSQL read each of them once.
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
            -- Spans from the first that ends in the block or behind it to the last that begins before its end.
            select i.at + (case when i.at = 0 or starts[i.at] + lengths[i.at] <= t.index then 1 else 0 end) as low,
                   width_bucket(t.index + t.count - 1, starts) as high
              from width_bucket(t.index, starts) i(at)) w
         where t.data_id = d.id and t.index > starts[1] - d.block_size and t.index < starts[n] + lengths[n]
           and w.low <= w.high
         order by t.index offset 0) o offset 0) b;
  return answer;
end
$$;

-- The elements at rows[i] + runs[j] .. + run_length - 1, for every i and j, i outermost, from blocks that are read whole,
-- once each. Rows and runs are in order, and none overlaps the next.
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
      -- Positions and runs are not joined: PostgreSQL may join from either side, which would change the order.
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
         where t.data_id = d.id and t.index > rows[1] + row_first - d.block_size and t.index < rows[cardinality(rows)] + row_end
           and w.low <= w.high
         order by t.index offset 0) o offset 0) b;
  return answer;
end
$$;

-- Elements that were never written -----------------------------------------------------------------

-- A number of elements that all have the fill value of an array.
create or replace function tensorage.fill_of(d public.datasets, elements bigint) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return decode(repeat(encode(d.fill, 'hex'), elements::int), 'hex');
end
$$;

-- True if all elements from `first` to before `behind` are there.
create or replace function tensorage.is_written(d public.datasets, first bigint, behind bigint) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return d.fill is null or (
    select sum(least(t.index + t.count, behind) - greatest(t.index, first)) from public.tensors t
     where t.data_id = d.id and t.index > first - d.block_size and t.index < behind and t.index + t.count > first) = behind - first;
end
$$;

-- The elements at starts[i] .. + lengths[i] - 1, for every i, with the fill value where none was written. Raises if one was
-- written, and is not there.
create or replace function tensorage.gather_filled(d public.datasets, starts bigint[], lengths bigint[]) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  filler bytea := tensorage.fill_of(d, (select max(length) from unnest(lengths) length));
begin
  if exists (
       select from unnest(starts, lengths) p(at, length), lateral (
         select w.number from tensorage.written w
          where w.data_id = d.id and w.number > p.at - d.block_size and w.number < p.at + p.length
            and not exists (select from public.tensors t where t.data_id = d.id and t.index = w.number)
          limit 1) w) then
    raise exception using errcode = 'TS004', message = 'not all elements that were written are there',
      hint = 'Blocks of the array were deleted behind its back.';
  end if;
  return (
    select string_agg(s.elements, '')
      from unnest(starts, lengths) p(at, length), lateral (
        -- Between two blocks, and before the first and behind the last, there are elements with the fill value.
        select coalesce(string_agg(substr(filler, 1, ((b.low - b.last_high) * d.itemsize)::int) || b.piece, '' order by b.low), '')
               || substr(filler, 1, ((p.at + p.length - coalesce(max(b.high), p.at)) * d.itemsize)::int) as elements
          from (
            select greatest(t.index, p.at) as low, least(t.index + t.count, p.at + p.length) as high,
                   lag(t.index + t.count, 1, p.at) over (order by t.index) as last_high,
                   substr(t.tensor,
                          (greatest(p.at - t.index, 0) * d.itemsize)::int + 1,
                          ((least(t.index + t.count, p.at + p.length) - greatest(t.index, p.at)) * d.itemsize)::int) as piece
              from public.tensors t
             where t.data_id = d.id and t.index > p.at - d.block_size and t.index < p.at + p.length
               and t.index + t.count > p.at
             order by t.index) b
        offset 0) s);
end
$$;

-- Functions of the API -----------------------------------------------------------------------------

-- `known` of all reading functions: what the client remembers of the array, for tensorage.is_as_known.

-- The elements at rows[i] + runs[j] .. + run_length - 1, for every i and j, i outermost.
create or replace function public.tensorage_read(
  data_id bigint, version bigint, rows bigint[], runs bigint[], run_length bigint, known jsonb default null)
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  d public.datasets := tensorage.readable(data_id, version, known => known);
  n int := cardinality(rows);
  m int := cardinality(runs);
  -- Not bigints, which may overflow: a client may send any numbers.
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
  elsif pieces = 1 and d.fill is null then
    -- A long run, as a rule. A function call or a variable would copy its bytes.
    return (
      select case when octet_length(p.bytes) = run_length * d.itemsize then p.bytes
                  else tensorage.check_answer(d, run_length, p.bytes) end
        from (select string_agg(s.piece, '') as bytes from (
                select substr(t.tensor,
                              (greatest(rows[1] + runs[1] - t.index, 0) * d.itemsize)::int + 1,
                              ((least(t.index + t.count, rows[1] + runs[1] + run_length)
                                - greatest(t.index, rows[1] + runs[1])) * d.itemsize)::int) as piece
                  from public.tensors t
                 where t.data_id = d.id and t.index > rows[1] + runs[1] - d.block_size
                   and t.index < rows[1] + runs[1] + run_length and t.index + t.count > rows[1] + runs[1]
                 order by t.index) s) p);
  elsif pieces >= 256 and rows[1] >= 0 and runs[1] >= 0 and row_extent > 0 and extent > 0
        and tensorage.is_dense(d, pieces, 1, extent) then
    blocks := (select count(distinct r / d.block_size) from unnest(rows) r) * (1 + trunc(row_extent / d.block_size));
    if tensorage.is_dense(d, pieces, blocks, extent) and tensorage.is_written(d, first::bigint, behind::bigint)
       and tensorage.are_apart(rows, row_extent::bigint) and tensorage.are_apart(runs, run_length) then
      return tensorage.check_answer(d, pieces * run_length, tensorage.gather_grid(d, rows, runs, run_length));
    end if;
  end if;
  starts := array(select r.at + unnest(runs) from unnest(rows) r(at));
  return tensorage.check_answer(d, pieces * run_length,
                                tensorage.gather(d, starts, array_fill(run_length, array[cardinality(starts)])));
end
$$;

-- The array of a reader of one run, and the position behind the run. Raises unless the array may be read and has the run.
create or replace function tensorage.readable_run(
  data_id bigint, version bigint, first bigint, elements bigint, known jsonb, out d public.datasets, out behind bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  d := tensorage.readable(data_id, version, known => known);
  perform tensorage.check_wanted(d, case when elements >= 1 and first is not null then elements end, first, first::numeric + elements);
  behind := first + elements;
end
$$;

-- The elements at first .. + elements - 1, as tensorage_read answers them, for a long run. In SQL, which hands the answer on: PL/pgSQL
-- copies it twice. Older releases plan a function in SQL anew at each call, which takes longer than that for a short run.
create or replace function public.tensorage_read_run(
  data_id bigint, version bigint, first bigint, elements bigint, known jsonb default null)
returns public."application/vnd.tensorage"
language sql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
  select case when octet_length(p.bytes) = elements * (r.d).itemsize then p.bytes
              else tensorage.check_answer(r.d, elements, tensorage.gather(r.d, array[first], array[elements])) end
    from tensorage.readable_run(data_id, version, first, elements, known) r, lateral (
      -- No sum of arguments here: PostgreSQL may compute it before they are checked.
      select string_agg(s.piece, '') as bytes from (
        select substr(t.tensor,
                      (greatest(first - t.index, 0) * (r.d).itemsize)::int + 1,
                      ((least(t.index + t.count, r.behind) - greatest(t.index, first)) * (r.d).itemsize)::int) as piece
          from public.tensors t
         where t.data_id = (r.d).id and t.index > first - (r.d).block_size and t.index < r.behind and t.index + t.count > first
           and (r.d).fill is null
         order by t.index) s) p
$$;

-- The elements at starts[i] .. + lengths[i] - 1, for every i.
create or replace function public.tensorage_read_spans(
  data_id bigint, version bigint, starts bigint[], lengths bigint[], known jsonb default null)
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  d public.datasets := tensorage.readable(data_id, version, known => known);
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
  -- Arrays that come as text may have any lower bound; width_bucket and slices count from 1.
  elsif n >= 256 and array_lower(lengths, 1) = 1 and extent > 0 and tensorage.is_dense(d, n, 1, extent)
        and tensorage.is_dense(d, n, (select count(distinct at / d.block_size) from unnest(starts) at), extent)
        and tensorage.are_in_order(starts, lengths) and tensorage.is_written(d, first::bigint, behind::bigint) then
    answer := tensorage.gather_dense(d, starts, lengths);
  else
    answer := tensorage.gather(d, starts, lengths);
  end if;
  return tensorage.check_answer(d, wanted, answer);
end
$$;

-- Bytes offsets[k] .. + sizes[k] - 1, for every k, of each record at starts[i] .. + lengths[i] - 1, for every i: fields of
-- records, without the rest of them.
create or replace function public.tensorage_read_fields(
  data_id bigint, version bigint, starts bigint[], lengths bigint[], offsets int[], sizes int[], known jsonb default null)
returns public."application/vnd.tensorage"
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  d public.datasets := tensorage.readable(data_id, version, known => known);
  wanted numeric;
  records bytea;
begin
  if cardinality(offsets) is distinct from cardinality(sizes) or coalesce(cardinality(offsets), 0) = 0
     or exists (select from unnest(offsets, sizes) f(at, size)
                 where (at >= 0 and size >= 1 and at::bigint + size <= d.itemsize) is not true) then
    raise exception using errcode = 'TS006', message = format('these are no bytes of a record of %s', d.itemsize);
  end if;
  wanted := (select coalesce(sum(length), 0) from unnest(lengths) length);
  perform tensorage.check_pieces(wanted * cardinality(offsets));
  -- The same bytes may be asked for as several fields, again and again.
  if wanted * (select sum(size) from unnest(sizes) size) > 16777216 then
    raise exception using errcode = 'TS006',
      message = format('the fields of %s records are too many bytes for one request', wanted), hint = 'Ask for less at a time.';
  end if;
  -- Checks what is asked for, and that all of it is there.
  records := public.tensorage_read_spans(data_id, version, starts, lengths, known);
  -- Records and fields are not joined: PostgreSQL may join from either side, which would change the order.
  return coalesce((
    select string_agg(substr(records, s.at, s.size), '')
      from (select r.at + unnest(offsets) + 1 as at, unnest(sizes) as size
              from generate_series(0, octet_length(records) - d.itemsize, d.itemsize) r(at)) s), '');
end
$$;
