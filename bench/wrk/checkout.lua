-- Checkouts only: each request reserves the next item for the next user.
--
--   wrk -t2 -c256 -d30s -s bench/wrk/checkout.lua http://localhost:8080
--
-- The stock is soon reserved. From then on nearly every answer is 409 `item-reserved`, and each hold that expires
-- allows one more checkout. ITEMS=… sets the number of items (10000).

local items = tonumber(os.getenv("ITEMS") or "10000")
local threads, number, turn = {}, 0, 0

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init()
  turn = number * 7919 -- a prime, so that the threads start at different items
end

function request()
  turn = turn + 1
  return wrk.format("POST", "/checkout?user_id=" .. turn .. "&item_id=" .. turn % items)
end
