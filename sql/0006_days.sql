-- One partition for the sales that begin in one UTC day. With one for each sale, a year of hourly sales had 17,520 tables
-- and indexes, more than one transaction can lock. Refused and granted checkouts of a day are separate partitions of it,
-- so that the refused ones can be dropped earlier. Columns are ordered by alignment: a refused checkout takes 56 bytes
-- and not 64.

alter table stampede.checkouts rename to checkouts_before;
alter index stampede.checkouts_granted rename to checkouts_before_granted;
alter table stampede.purchases rename to purchases_before;
alter table stampede.purchases_before rename constraint purchases_pkey to purchases_before_pkey;
alter table stampede.purchases_before drop constraint purchases_code_key;
alter index stampede.purchases_by_user rename to purchases_before_by_user;
alter table stampede.releases rename to releases_before;
alter index stampede.releases_by_sale rename to releases_before_by_sale;
alter table stampede.extensions rename to extensions_before;
alter index stampede.extensions_by_sale rename to extensions_before_by_sale;

create table stampede.checkouts (
    sale_id bigint not null,
    user_id bigint not null,
    at timestamptz not null,
    expires_at timestamptz,
    item_id integer not null,
    outcome smallint not null,
    code uuid,
    idempotency_key uuid,
    constraint checkouts_outcome_check check (outcome between 0 and 3)
) partition by range (sale_id);
comment on table stampede.checkouts is 'Each checkout that was granted or refused. One partition for the sales that begin in one UTC day, and in it one for the granted and one for the refused checkouts';
comment on column stampede.checkouts.sale_id is 'The sale';
comment on column stampede.checkouts.user_id is 'The user who asked for the item';
comment on column stampede.checkouts.at is 'The time of the decision';
comment on column stampede.checkouts.expires_at is 'The end of the reservation without an extension, if there is a reservation';
comment on column stampede.checkouts.item_id is 'The item';
comment on column stampede.checkouts.outcome is '0 reserved, 1 item-sold, 2 item-reserved, 3 user-limit';
comment on column stampede.checkouts.code is 'The code of the reservation, if there is one';
comment on column stampede.checkouts.idempotency_key is 'Fingerprint of the Idempotency-Key of the checkout, if it was granted and there was one';

create table stampede.purchases (
    sale_id bigint not null,
    user_id bigint not null,
    at timestamptz not null,
    item_id integer not null,
    code uuid not null,
    idempotency_key uuid,
    primary key (sale_id, item_id),
    unique (sale_id, code)
) partition by range (sale_id);
comment on table stampede.purchases is 'Each item sold. The keys detect errors and filter nothing: a conflict stops the server';
comment on column stampede.purchases.sale_id is 'The sale';
comment on column stampede.purchases.user_id is 'The user who bought the item';
comment on column stampede.purchases.at is 'The time of the purchase';
comment on column stampede.purchases.item_id is 'The item';
comment on column stampede.purchases.code is 'The code of the reservation';
comment on column stampede.purchases.idempotency_key is 'Fingerprint of the Idempotency-Key of the purchase, if there was one';
create index purchases_by_user on stampede.purchases (user_id, sale_id);

create table stampede.releases (
    sale_id bigint not null,
    user_id bigint not null,
    at timestamptz not null,
    item_id integer not null,
    reason smallint not null,
    code uuid not null,
    constraint releases_reason_check check (reason in (1, 2))
) partition by range (sale_id);
comment on table stampede.releases is 'Reservations that ended without a purchase';
comment on column stampede.releases.sale_id is 'The sale';
comment on column stampede.releases.user_id is 'The user who had reserved the item';
comment on column stampede.releases.at is 'The time of the release';
comment on column stampede.releases.item_id is 'The item that became available';
comment on column stampede.releases.reason is '1 expired, 2 cancelled by the client, or because its answer reached no client';
comment on column stampede.releases.code is 'The code of the reservation';
create index releases_by_sale on stampede.releases (sale_id);

create table stampede.extensions (
    sale_id bigint not null,
    user_id bigint not null,
    at timestamptz not null,
    item_id integer not null,
    by_ms integer not null,
    code uuid not null,
    constraint extensions_by_ms_check check (by_ms > 0)
) partition by range (sale_id);
comment on table stampede.extensions is 'Reservations that were extended, each at most once';
comment on column stampede.extensions.sale_id is 'The sale';
comment on column stampede.extensions.user_id is 'The user who has reserved the item';
comment on column stampede.extensions.at is 'The time of the extension';
comment on column stampede.extensions.item_id is 'The item that is reserved';
comment on column stampede.extensions.by_ms is 'The time by which the reservation ends later than expires_at of its checkout, in milliseconds';
comment on column stampede.extensions.code is 'The code of the reservation';
create index extensions_by_sale on stampede.extensions (sale_id);

-- The rows of earlier versions stay where they are. Each of their partitions becomes a partition for one sale, and each
-- of their other tables one for all sales so far. Postgres reads each table once to check this.
do $$
declare
    kept record;
    first bigint;
    until bigint;
    begun boolean;
begin
    for kept in
        select c.oid::regclass as name, substring(pg_get_expr(c.relpartbound, c.oid) from '[0-9]+')::bigint as sale
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'stampede.checkouts_before'::regclass
    loop
        execute format('alter table stampede.checkouts_before detach partition %s', kept.name);
        execute format('alter table stampede.checkouts attach partition %s for values from (%s) to (%s)',
                       kept.name, kept.sale, kept.sale + 1);
    end loop;
    drop table stampede.checkouts_before;

    select min(sale), max(sale) + 1 into first, until from (
        select min(sale_id) from stampede.sales union select max(sale_id) from stampede.sales
        union select min(sale_id) from stampede.purchases_before union select max(sale_id) from stampede.purchases_before
        union select min(sale_id) from stampede.releases_before union select max(sale_id) from stampede.releases_before
        union select min(sale_id) from stampede.extensions_before union select max(sale_id) from stampede.extensions_before
    ) sales (sale);
    for kept in select name from unnest(array['purchases', 'releases', 'extensions']) name loop
        execute format('select exists (select from stampede.%I)', kept.name || '_before') into begun;
        if begun then
            execute format('alter table stampede.%I attach partition stampede.%I for values from (%s) to (%s)',
                           kept.name, kept.name || '_before', first, until);
        else
            execute format('drop table stampede.%I', kept.name || '_before');
        end if;
    end loop;
end $$;

create view stampede.item_status as
select i.sale_id, i.item_id, i.name, p.code is not null as purchased, p.user_id, p.at as purchased_at
from stampede.sale_items i left join stampede.purchases p using (sale_id, item_id);
comment on view stampede.item_status is 'Whether each item of each sale was bought, by which user, and when. Select by sale';

create view stampede.partitions as
select parent.relname as table_name, c.relname as partition, (bounds[1])::bigint as first_sale,
       (bounds[2])::bigint as until_sale, refused.relname as refused,
       parent.relname = 'checkouts' and c.relkind = 'p' and refused.oid is null as is_pruned, i.inhdetachpending as is_leaving
from pg_catalog.pg_inherits i
join pg_catalog.pg_class parent on parent.oid = i.inhparent
join pg_catalog.pg_class c on c.oid = i.inhrelid
left join lateral (
    select leaf.oid, leaf.relname from pg_catalog.pg_inherits l join pg_catalog.pg_class leaf on leaf.oid = l.inhrelid
    where l.inhparent = c.oid and not l.inhdetachpending and pg_get_expr(leaf.relpartbound, leaf.oid) like '%''3''%'
) refused on c.relkind = 'p',
lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([0-9]+)'\) TO \('([0-9]+)'\)$$) bounds
where parent.oid in ('stampede.checkouts'::regclass, 'stampede.purchases'::regclass, 'stampede.releases'::regclass,
                     'stampede.extensions'::regclass);
comment on view stampede.partitions is 'The partitions of each table';
comment on column stampede.partitions.first_sale is 'The first sale in the partition';
comment on column stampede.partitions.until_sale is 'The sale after the last one in the partition';
comment on column stampede.partitions.refused is 'The partition of the refused checkouts, if they are separate and still here';
comment on column stampede.partitions.is_pruned is 'Whether the refused checkouts were dropped';
comment on column stampede.partitions.is_leaving is 'Whether a concurrent detach was interrupted: it must be finalized';

-- Makes the partition of one table that holds a sale, within the sales from `first` to before `until`. Partitions that
-- exist make it smaller. A table of the right name that is not attached is attached: a crash or an operator left it.
create function stampede.prepare_partition(parent text, sale bigint, first bigint, until bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    found record;
    name text;
begin
    select * into found from stampede.partitions p
    where p.table_name = parent and p.first_sale <= sale and sale < p.until_sale;
    if found.partition is null then
        first := greatest(first, (select max(p.until_sale) from stampede.partitions p
                                  where p.table_name = parent and p.until_sale <= sale));
        until := least(until, (select min(p.first_sale) from stampede.partitions p
                               where p.table_name = parent and p.first_sale > sale));
        name := parent || '_' || first;
        -- Made apart and then attached: "partition of" would wait for every reader of the table, and then lock it.
        if to_regclass(format('stampede.%I', name)) is null then
            if parent = 'checkouts' then
                execute format('create table stampede.%I (like stampede.checkouts including all) partition by list (outcome)', name);
                execute format('create table stampede.%I partition of stampede.%I for values in (0)', name || '_granted', name);
                execute format('create index on stampede.%I (sale_id, item_id)', name || '_granted');
                execute format('create table stampede.%I partition of stampede.%I for values in (1, 2, 3)', name || '_refused', name);
            else
                execute format('create table stampede.%I (like stampede.%I including all)', name, parent);
            end if;
        end if;
        execute format('alter table stampede.%I attach partition stampede.%I for values from (%s) to (%s)', parent, name, first, until);
    elsif found.is_pruned then
        name := found.partition || '_refused';
        if to_regclass(format('stampede.%I', name)) is null then
            execute format('create table stampede.%I (like stampede.checkouts including all)', name);
        end if;
        execute format('alter table stampede.%I attach partition stampede.%I for values in (1, 2, 3)', found.partition, name);
    end if;
end $$;
comment on function stampede.prepare_partition is 'Makes the partition of one table that holds a sale, if there is none';

-- A role that may execute this function needs no right to change the schema.
create or replace function stampede.prepare_sale(sale bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    period bigint := (select sale_period_s from stampede.clusters limit 1);
    day bigint := sale * period / 86400;
    parent text;
begin
    foreach parent in array array['checkouts', 'purchases', 'releases', 'extensions'] loop
        perform stampede.prepare_partition(parent, sale, (day * 86400 + period - 1) / period,
                                           ((day + 1) * 86400 + period - 1) / period);
    end loop;
end $$;
comment on function stampede.prepare_sale is 'Makes the partitions for the sales that begin on the same UTC day as this sale, where there are none';
revoke all on function stampede.prepare_sale, stampede.prepare_partition from public;
