-- The products of each sale of a plan, as the plan has them when their rows arrive. The names of the units of a product are
-- one array: a million of them arrive and are deleted as the rows of their products.

create table stampede.products (
    sale_id bigint not null,
    product_id text not null,
    first_item_id integer not null,
    items integer not null,
    name text not null,
    price text,
    image text,
    units text[],
    primary key (sale_id, product_id)
);
comment on table stampede.products is 'The products of each sale of a plan. The units of a product are the items from first_item_id to first_item_id + items - 1';
comment on column stampede.products.sale_id is 'The sale';
comment on column stampede.products.product_id is 'The id of the product in the plan';
comment on column stampede.products.first_item_id is 'The first item of the product';
comment on column stampede.products.items is 'The number of items of the product';
comment on column stampede.products.name is 'The name of the product';
comment on column stampede.products.price is 'The price for people, as the plan writes it, if it has one';
comment on column stampede.products.image is 'The address of the image, if the plan has one';
comment on column stampede.products.units is 'The names of the items in their order, if the plan names them';

create view stampede.units as
select p.sale_id, u.item_id, p.product_id, p.name as product_name, u.unit
from stampede.products p,
     lateral rows from (generate_series(p.first_item_id, p.first_item_id + p.items - 1), unnest(p.units)) u (item_id, unit);
comment on view stampede.units is 'Each item of each sale of a plan, with its product. Select by sale: the view computes all items of each selected sale';
comment on column stampede.units.unit is 'The name of the item, if the plan names it';

-- Roles that write and read the sales write and read their products.
do $$
declare
    granted record;
begin
    for granted in
        select case a.grantee when 0 then 'public' else a.grantee::regrole::text end as role, a.privilege_type as privilege,
               case when a.is_grantable then ' with grant option' else '' end as option
        from pg_class c, lateral aclexplode(c.relacl) a
        where c.oid = 'stampede.sales'::regclass and a.privilege_type in ('SELECT', 'INSERT') and a.grantee <> c.relowner
    loop
        execute format('grant %s on stampede.products to %s%s', granted.privilege, granted.role, granted.option);
        if granted.privilege = 'SELECT' then
            execute format('grant select on stampede.units to %s%s', granted.role, granted.option);
        end if;
    end loop;
end $$;

-- The publication of an earlier version stays as it is: a subscriber without the table would stop.
do $$
begin
    if exists (select from stampede.schema_migrations where version = 7 and applied_at = now())
       and exists (select from pg_publication_tables
                   where pubname = 'stampede' and schemaname = 'stampede' and tablename = 'purchases') then
        alter publication stampede add table stampede.products;
    end if;
end $$;
