-- The publication for logical replication. Other programs read each purchase, granted checkout, release and extension as
-- it commits, under the name of its table and not of its partition. Only inserts are published: Stampede changes no row,
-- and a partition that is dropped is no event. A publication needs the right to create in the database, and granted
-- checkouts alone need PostgreSQL 15.

do $$
declare
    grants text := '';
begin
    if not has_database_privilege(current_database(), 'create') then
        raise notice 'the publication stampede is not created: the role may not create in this database';
        return;
    end if;
    if exists (select from pg_publication where pubname = 'stampede') then
        raise notice 'there is a publication stampede already';
        return;
    end if;
    if current_setting('server_version_num')::integer >= 150000 then
        grants := ', stampede.checkouts where (outcome = 0)';
    end if;
    execute 'create publication stampede for table stampede.purchases, stampede.releases, stampede.extensions' || grants
        || ' with (publish = ''insert'', publish_via_partition_root = true)';
    comment on publication stampede is 'Purchases, granted checkouts, releases and extensions of Stampede';
end $$;
