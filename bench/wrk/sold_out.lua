-- Checkouts of sold items: nearly every request of a rush is one of these.
--
--   wrk -t1 -c64 -d1s  -s bench/wrk/chain.lua    http://localhost:8080   (buys everything)
--   wrk -t1 -c64 -d10s -s bench/wrk/sold_out.lua http://localhost:8080
--
-- Every answer is 409 `item-sold`, which wrk counts as "Non-2xx". The requests are built in advance, so that the load
-- generator needs little CPU time. ITEMS=… sets the number of items (10000).

local items = tonumber(os.getenv("ITEMS") or "10000")
local requests, turn = {}, 0

function init()
  for user = 1, 1000 do
    requests[user] = wrk.format("POST", "/checkout?user_id=" .. user .. "&item_id=" .. user * 7919 % items)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end
