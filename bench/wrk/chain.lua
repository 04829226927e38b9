-- Buyers: checks out each item once, then buys it with the code.
--
--   wrk -t1 -c256 -d30s -s bench/wrk/chain.lua http://localhost:8080
--
-- Each thread walks through its own part of the stock. After the last item it starts again, and its checkouts are
-- refused (409 `item-sold`). At the end the script prints the number of items bought.
-- ITEMS=… sets the number of items (10000). THREADS=… must equal -t (1).

local items = tonumber(os.getenv("ITEMS") or "10000")
local stride = tonumber(os.getenv("THREADS") or "1")
local threads, codes = {}, {}
number, bought = 0, 0
local item = nil

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function request()
  local code = table.remove(codes)
  if code then return wrk.format("POST", "/purchase?code=" .. code) end
  item = item and item + stride or number
  -- Ten items for each user, which is the limit.
  return wrk.format("POST", "/checkout?user_id=" .. math.floor(item % items / 10) .. "&item_id=" .. item % items)
end

function response(status, headers, body)
  if status ~= 200 then return end
  if #body == 36 then codes[#codes + 1] = body else bought = bought + 1 end
end

function done()
  local total = 0
  for _, thread in ipairs(threads) do total = total + thread:get("bought") end
  print(total .. " items bought")
end
