-- Sales of a plan have times of their own, and their ids do not count periods.

alter table stampede.sales add column if not exists opens_at timestamptz;
alter table stampede.sales add column if not exists closes_at timestamptz;
alter table stampede.sales add column if not exists products bigint not null default 0;
comment on column stampede.sales.sale_id is 'The id of the sale in its plan. Without a plan: floor(unix seconds / period)';
comment on column stampede.sales.opens_at is 'The opening time of the sale. Null if an earlier version opened it';
comment on column stampede.sales.closes_at is 'The closing time of the sale. Null if an earlier version opened it';
comment on column stampede.sales.products is 'Fingerprint of the products and their numbers of units; 0 without products';
comment on column stampede.clusters.sale_period_s is 'Length of the sales without a plan, in seconds. 0 if all sales so far had a plan';

-- The ids of a plan do not tell the day of a sale, so the server says which sales share a partition.
create or replace function stampede.prepare_sales(sale bigint, first bigint, until bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    parent text;
begin
    foreach parent in array array['checkouts', 'purchases', 'releases', 'extensions'] loop
        perform stampede.prepare_partition(parent, sale, first, until);
    end loop;
end $$;
comment on function stampede.prepare_sales is 'Makes the partitions for the sales from first to before until, one of which is this sale, where there are none';
revoke all on function stampede.prepare_sales from public;

-- Which role may make partitions does not change.
do $$
declare
    granted record;
begin
    for granted in
        select a.grantee::regrole as role, a.is_grantable
        from pg_proc p, lateral aclexplode(p.proacl) a
        where p.oid = 'stampede.prepare_sale(bigint)'::regprocedure and a.privilege_type = 'EXECUTE'
        and a.grantee <> 0 and a.grantee <> p.proowner
    loop
        execute format('grant execute on function stampede.prepare_sales to %s%s', granted.role,
                       case when granted.is_grantable then ' with grant option' else '' end);
    end loop;
end $$;

-- Databases that were in use before the sales had a plan still have sales with periods.
create or replace function stampede.prepare_sale(sale bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    period bigint := (select nullif(sale_period_s, 0) from stampede.clusters limit 1);
    day bigint := sale * period / 86400;
begin
    perform stampede.prepare_sales(sale, coalesce((day * 86400 + period - 1) / period, sale),
                                   coalesce(((day + 1) * 86400 + period - 1) / period, sale + 1));
end $$;
comment on function stampede.prepare_sale is 'Makes the partitions for the sales that begin on the same UTC day as this sale, where there are none';
