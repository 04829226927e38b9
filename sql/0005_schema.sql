-- A schema of its own, `stampede`. Stampede moves the tables of earlier versions there before it applies this file. From
-- here on every name has its schema, so no statement depends on the search path.

alter function stampede.prepare_sale(bigint) set search_path = stampede, pg_temp;

-- The name of an item follows from its sale and its number, so it is computed and not stored. Names are those of
-- src/sale/item_name.rs. They come from Fibonacci hashing of sale and item: the upper eight bits of
-- (sale * 2^32 + item) * 0x9E3779B97F4A7C15 modulo 2^64, computed from halves that do not overflow.
create function stampede.item_name(sale bigint, item integer) returns text
language sql immutable strict parallel safe as $$
    select (array['Amber', 'Brisk', 'Cobalt', 'Dapper', 'Electric', 'Feral', 'Golden', 'Hushed', 'Ivory', 'Jolly', 'Keen',
            'Lunar', 'Mellow', 'Northern', 'Opal', 'Polished'])[1 + top / 16]
        || ' ' || (array['Anvil', 'Bicycle', 'Compass', 'Drum', 'Easel', 'Fiddle', 'Globe', 'Hammock', 'Inkwell', 'Jacket',
            'Kettle', 'Lantern', 'Mandolin', 'Notebook', 'Orrery', 'Parasol'])[1 + top % 16]
        || ' ' || item
    from (select (((sale * 2135587861) & 4294967295) + ((item::bigint * 2654435769) & 4294967295)
                  + ((item::bigint * 2135587861) >> 32) >> 24 & 255)::integer as top) hash
$$;
comment on function stampede.item_name is 'Returns the name of an item of a sale, the same that the server answers';

drop view stampede.item_status;
drop table stampede.sale_items;
drop function stampede.extend_catalogue(integer);
alter table stampede.sales drop column catalogued;

create view stampede.sale_items as
select s.sale_id, i.item_id, stampede.item_name(s.sale_id, i.item_id) as name,
       '/items/' || i.item_id || '/image.svg' as image_url
from stampede.sales s, lateral generate_series(0, s.items - 1) i (item_id);
comment on view stampede.sale_items is 'Each item of each sale. Select by sale: the view computes all items of each selected sale';
comment on column stampede.sale_items.name is 'The name of the item';
comment on column stampede.sale_items.image_url is 'The path of the image on the server';
