-- Queries for operators. "The sale" is the latest sale. Every query names the sales that it reads: without them, Postgres
-- reads all partitions.

-- How many items of the sale are sold?
select s.sale_id, s.items, p.sold, s.items - p.sold as left_over
from (select * from stampede.sales order by sale_id desc limit 1) s,
     lateral (select count(*) as sold from stampede.purchases p where p.sale_id = s.sale_id) p;

-- What did a user buy in the latest 48 sales? (purchases_by_user)
select p.sale_id, stampede.item_name(p.sale_id, p.item_id) as name, p.at from stampede.purchases p
where p.user_id = 7 and p.sale_id > (select max(sale_id) from stampede.sales) - 48 order by p.at desc;

-- Who bought an item, with which code? (primary key)
select * from stampede.purchases where sale_id = (select max(sale_id) from stampede.sales) and item_id = 42;

-- With a plan: how many units are sold of each product of the sale?
select p.sale_id, p.product_id, p.name, p.items, count(s.item_id) as sold
from stampede.products p left join stampede.purchases s
    on s.sale_id = p.sale_id and s.item_id >= p.first_item_id and s.item_id < p.first_item_id + p.items
where p.sale_id = (select max(sale_id) from stampede.sales)
group by p.sale_id, p.product_id order by p.first_item_id;

-- With a plan: which products did a user buy in the latest 48 sales? (purchases_by_user)
select p.sale_id, p.item_id, t.product_id, t.name, t.units[p.item_id - t.first_item_id + 1] as unit
from stampede.purchases p join stampede.products t
    on t.sale_id = p.sale_id and p.item_id >= t.first_item_id and p.item_id < t.first_item_id + t.items
where p.user_id = 7 and p.sale_id > (select max(sale_id) from stampede.sales) - 48 order by p.at, p.item_id;

-- How many checkouts had which outcome? Reads one partition.
select outcome, count(*) from stampede.checkouts
where sale_id = (select max(sale_id) from stampede.sales) group by outcome order by outcome;

-- How far is Postgres behind? Compare the positions with log_records_durable in GET /health.
select epoch, shard, log, position from stampede.log_positions order by epoch desc, shard, log limit 20;
