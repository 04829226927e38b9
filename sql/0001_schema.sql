-- Stampede's schema. The server applies this file once, at its start, under an advisory lock.

create table clusters (
    cluster uuid primary key,
    sale_period_s integer not null,
    epoch bigint not null,
    run uuid not null,
    since timestamptz not null default now(),
    seen_at timestamptz not null default now()
);
comment on table clusters is 'The one installation that writes here. Its epoch rises at each start of a server; a stale server changes no row';
comment on column clusters.cluster is 'Cluster id, from the control.json of the data directory';
comment on column clusters.sale_period_s is 'Length of a sale in seconds: sale ids count these';
comment on column clusters.epoch is 'The latest run';
comment on column clusters.run is 'Random for each process: tells two runs apart that copies of one data directory gave the same epoch';
comment on column clusters.since is 'When that run began';
comment on column clusters.seen_at is 'When that run last said that it lives; -infinity when it has stopped and everything of it is here';

create table log_positions (
    cluster uuid not null references clusters,
    epoch bigint not null,
    shard integer not null,
    log text not null check (log in ('purchases', 'attempts')),
    position bigint not null,
    primary key (cluster, epoch, shard, log)
);
comment on table log_positions is 'How much of each log is here: moved on in the transaction that brings the rows, so each record arrives exactly once';
comment on column log_positions.cluster is 'Whose log';
comment on column log_positions.epoch is 'Of which run';
comment on column log_positions.shard is 'Of which shard of that run';
comment on column log_positions.log is 'purchases: grants, releases, purchases. attempts: refused checkouts';
comment on column log_positions.position is 'Records of it that are here';

create table sales (
    sale_id bigint primary key,
    items integer not null,
    user_limit integer not null,
    opened_at timestamptz not null,
    catalogued integer not null default 0
);
comment on table sales is 'Every sale that was opened, with the terms frozen at its start';
comment on column sales.sale_id is 'floor(unix seconds / period)';
comment on column sales.items is 'The stock: items 0 to items - 1';
comment on column sales.user_limit is 'Items one user may hold and buy';
comment on column sales.opened_at is 'When the first shard began it';
comment on column sales.catalogued is 'Items of it that are in sale_items: soon all';

create table sale_items (
    sale_id bigint not null references sales on delete cascade,
    item_id integer not null,
    name text not null,
    image_url text not null,
    primary key (sale_id, item_id)
);
comment on table sale_items is 'The catalogue of each sale, generated when it opens';
comment on column sale_items.sale_id is 'The sale';
comment on column sale_items.item_id is 'The item';
comment on column sale_items.name is 'Its name, the same that the server answers';
comment on column sale_items.image_url is 'Path of its image on the server';

create table checkouts (
    sale_id bigint not null,
    item_id integer not null,
    user_id bigint not null,
    code uuid,
    outcome smallint not null check (outcome between 0 and 3),
    at timestamptz not null,
    expires_at timestamptz
) partition by list (sale_id);
comment on table checkouts is 'Every attempt to reserve, append-only, one partition a sale: drop table checkouts_<sale_id> forgets one that has ended';
comment on column checkouts.sale_id is 'The sale';
comment on column checkouts.item_id is 'The item asked for';
comment on column checkouts.user_id is 'Who asked, 64 bits';
comment on column checkouts.code is 'The code given, if the item was reserved';
comment on column checkouts.outcome is '0 reserved, 1 item-sold, 2 item-reserved, 3 user-limit';
comment on column checkouts.at is 'When it was decided';
comment on column checkouts.expires_at is 'When the reservation ends, if there is one';

create index checkouts_granted on checkouts (sale_id, item_id) where outcome = 0;

create table releases (
    sale_id bigint not null,
    item_id integer not null,
    user_id bigint not null,
    code uuid not null,
    reason smallint not null check (reason in (1, 2)),
    at timestamptz not null
);
comment on table releases is 'Reservations that ended without a purchase';
comment on column releases.sale_id is 'The sale';
comment on column releases.item_id is 'The item that became free';
comment on column releases.user_id is 'Who had reserved it';
comment on column releases.code is 'The code of the reservation';
comment on column releases.reason is '1 expired, 2 cancelled';
comment on column releases.at is 'When';
create index releases_by_sale on releases (sale_id);

create table purchases (
    sale_id bigint not null,
    item_id integer not null,
    user_id bigint not null,
    code uuid not null unique,
    at timestamptz not null,
    idempotency_key uuid,
    primary key (sale_id, item_id)
);
comment on table purchases is 'Every item sold. The keys are an alarm, never a filter: a conflict stops the server';
comment on column purchases.sale_id is 'The sale';
comment on column purchases.item_id is 'The item';
comment on column purchases.user_id is 'Who bought it';
comment on column purchases.code is 'The code it was bought with';
comment on column purchases.at is 'When it was decided';
comment on column purchases.idempotency_key is 'Fingerprint of the Idempotency-Key it was bought with, if there was one';
create index purchases_by_user on purchases (user_id, sale_id);

-- Creates a sale's partition of checkouts. Attempts can arrive before the record that opens their sale.
create function prepare_sale(sale bigint) returns void language plpgsql as $$
begin
    if to_regclass('checkouts_' || sale) is null then
        -- Made apart and then attached: "partition of" would lock out every reader until the rows are in.
        execute format('create table %I (like checkouts including all)', 'checkouts_' || sale);
        execute format('alter table checkouts attach partition %I for values in (%s)', 'checkouts_' || sale, sale);
    end if;
end $$;
comment on function prepare_sale is 'Makes the partition of checkouts for a sale, if there is none';

-- Adds up to `most` items to the catalogue of the first sale whose catalogue is incomplete. Returns whether there was
-- such a sale. Names are those of src/sale/item_name.rs. They come from Fibonacci hashing of sale and item: the upper
-- eight bits of (sale * 2^32 + item) * 0x9E3779B97F4A7C15 modulo 2^64, computed from halves that do not overflow.
create function extend_catalogue(most integer) returns boolean language plpgsql as $$
declare
    qualities text[] := array['Amber', 'Brisk', 'Cobalt', 'Dapper', 'Electric', 'Feral', 'Golden', 'Hushed', 'Ivory',
        'Jolly', 'Keen', 'Lunar', 'Mellow', 'Northern', 'Opal', 'Polished'];
    things text[] := array['Anvil', 'Bicycle', 'Compass', 'Drum', 'Easel', 'Fiddle', 'Globe', 'Hammock', 'Inkwell',
        'Jacket', 'Kettle', 'Lantern', 'Mandolin', 'Notebook', 'Orrery', 'Parasol'];
    this sales;
    until integer;
begin
    select * into this from sales where catalogued < items order by sale_id limit 1 for update;
    if not found then
        return false;
    end if;
    until := least(this.items::bigint, this.catalogued::bigint + most);
    insert into sale_items
    select this.sale_id, item,
           qualities[1 + top / 16] || ' ' || things[1 + top % 16] || ' ' || item,
           '/items/' || item || '/image.svg'
    from generate_series(this.catalogued::bigint, until - 1) item,
         lateral (select (((this.sale_id * 2135587861) & 4294967295) + ((item * 2654435769) & 4294967295)
                          + ((item * 2135587861) >> 32) >> 24 & 255)::integer as top) hash;
    update sales set catalogued = until where sale_id = this.sale_id;
    return true;
end $$;
comment on function extend_catalogue is 'Goes on with the catalogue of a sale that has not got all its items yet';

create view item_status as
select i.sale_id, i.item_id, i.name, p.code is not null as purchased, p.user_id, p.at as purchased_at
from sale_items i left join purchases p using (sale_id, item_id);
comment on view item_status is 'For each item of each sale: whether it was bought, by whom, when';
