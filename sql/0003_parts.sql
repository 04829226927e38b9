-- Holds that were extended, and sales that live on after their end: a record of an ended sale can follow the opening of
-- the next one.

create table extensions (
    sale_id bigint not null,
    item_id integer not null,
    user_id bigint not null,
    code uuid not null,
    by_ms integer not null check (by_ms > 0),
    at timestamptz not null
);
comment on table extensions is 'Reservations that were extended, each at most once';
comment on column extensions.sale_id is 'The sale';
comment on column extensions.item_id is 'The item that is reserved';
comment on column extensions.user_id is 'The user who has reserved it';
comment on column extensions.code is 'The code of the reservation';
comment on column extensions.by_ms is 'The time by which the reservation ends later than expires_at of its checkout, in milliseconds';
comment on column extensions.at is 'The time of the extension';
create index extensions_by_sale on extensions (sale_id);

comment on column checkouts.expires_at is 'The end of the reservation without an extension, if there is a reservation';
comment on column releases.reason is '1 expired, 2 cancelled by the client, or because its answer reached no client';
