-- Queries for operators. "The sale" is the latest sale.

-- How many items of the sale are sold?
select s.sale_id, s.items, count(p.*) as sold, s.items - count(p.*) as left_over
from sales s left join purchases p using (sale_id)
group by s.sale_id, s.items order by s.sale_id desc limit 1;

-- What did a user buy? (purchases_by_user)
select p.sale_id, i.name, p.at from purchases p join sale_items i using (sale_id, item_id)
where p.user_id = 7 order by p.at desc;

-- Who bought an item, with which code? (primary key)
select * from purchases where sale_id = (select max(sale_id) from sales) and item_id = 42;

-- How many checkouts had which outcome? Reads one partition.
select outcome, count(*) from checkouts
where sale_id = (select max(sale_id) from sales) group by outcome order by outcome;

-- How far is Postgres behind? Compare the positions with log_records_durable in GET /health.
select epoch, shard, log, position from log_positions order by epoch desc, shard, log limit 20;
