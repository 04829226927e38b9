-- Checkouts only: each request asks for the next item, for the next user.
--
--   wrk -t2 -c256 -d30s -s bench/wrk/checkout.lua http://localhost:8080
--
-- The stock is soon reserved; from then on nearly every answer is 409 `item-reserved`, and every hold that runs
-- out lets one more checkout through. ITEMS=… tells how many items there are (10000).

local items = tonumber(os.getenv("ITEMS") or "10000")
local threads, number, turn = {}, 0, 0

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init()
  turn = number * 7919 -- a prime, so that threads do not walk in step
end

function request()
  turn = turn + 1
  return wrk.format("POST", "/checkout?user_id=" .. turn .. "&item_id=" .. turn % items)
end
