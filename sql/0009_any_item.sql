-- A refused checkout that asked for any item has no item.

alter table stampede.checkouts alter column item_id drop not null;
comment on column stampede.checkouts.item_id is 'The item. Null if a refused checkout asked for any item';
comment on column stampede.checkouts.outcome is '0 reserved, 1 item-sold, 2 item-reserved, 3 user-limit; without an item: 1 sold-out, 2 all-reserved, 3 user-limit';
