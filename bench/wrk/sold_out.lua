-- Checkouts of items that are sold: what nearly every request of a rush is.
--
--   wrk -t1 -c64 -d1s  -s bench/wrk/chain.lua    http://localhost:8080   (buys everything)
--   wrk -t1 -c64 -d10s -s bench/wrk/sold_out.lua http://localhost:8080
--
-- Every answer is 409 `item-sold`, which wrk counts as "Non-2xx". Requests are made beforehand, so that the
-- generator costs little. ITEMS=… tells how many items there are (10000).

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
