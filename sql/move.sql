-- Moves the tables of an earlier version, which are in the schema of the setting stampede.source, to the schema stampede.
-- An earlier version of Stampede looks for schema_migrations in the old place. It finds one that is newer than it knows,
-- so it refuses the database, and does not begin again with empty tables.

do $move$
declare
    source regnamespace := current_setting('stampede.source')::regnamespace;
    relation record;
begin
    for relation in
        select c.oid::regclass as name, case c.relkind when 'v' then 'view' else 'table' end as kind
        from pg_class c
        where c.relnamespace = source
        and (c.relname in ('clusters', 'log_positions', 'sales', 'sale_items', 'checkouts', 'releases', 'purchases',
                           'extensions', 'item_status', 'schema_migrations') and c.relkind in ('r', 'p', 'v')
             or exists (select from pg_inherits i join pg_class parent on parent.oid = i.inhparent
                        where i.inhrelid = c.oid and c.relkind = 'r'
                        and parent.relname = 'checkouts' and parent.relnamespace = source))
        order by c.relname
    loop
        execute format('alter %s %s set schema stampede', relation.kind, relation.name);
    end loop;
    execute format('alter function %s.prepare_sale(bigint) set schema stampede', source);
    execute format('alter function %s.extend_catalogue(integer) set schema stampede', source);
    execute format('create table %s.schema_migrations (version integer primary key, applied_at timestamptz not null default now())', source);
    execute format('insert into %s.schema_migrations (version) values (5)', source);
    execute format('comment on table %s.schema_migrations is %L', source,
                   'Makes versions of Stampede before the schema stampede refuse this database. The tables are in that schema');
end $move$;
