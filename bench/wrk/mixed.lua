-- A shop's load: buyers who check out and purchase, mixed with readers.
--
--   wrk -t1 -c256 -d30s -s bench/wrk/mixed.lua http://localhost:8080
--
-- LOOKS=… of each ten requests are `GET /sale` (5). The others walk through the stock as in chain.lua: a checkout of
-- the next item, and a purchase with each code received. After the last item, checkouts are refused (409 `item-sold`,
-- which wrk counts as "Non-2xx"). At the end the script prints the number of answers of each kind.
-- ITEMS=… sets the number of items (10000). THREADS=… must equal -t (1).

local items = tonumber(os.getenv("ITEMS") or "10000")
local stride = tonumber(os.getenv("THREADS") or "1")
local looks = tonumber(os.getenv("LOOKS") or "5")
local threads, codes, turn, item, look = {}, {}, 0, nil, nil
number, reserved, bought, looked, refused = 0, 0, 0, 0, 0

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init()
  look = wrk.format("GET", "/sale")
end

function request()
  turn = turn + 1
  -- Spread evenly over each ten requests.
  if turn * looks % 10 < looks then return look end
  local code = table.remove(codes)
  if code then return wrk.format("POST", "/purchase?code=" .. code) end
  item = item and item + stride or number
  -- Ten items for each user, which is the limit.
  return wrk.format("POST", "/checkout?user_id=" .. math.floor(item % items / 10) .. "&item_id=" .. item % items)
end

-- Answers arrive in a different order than requests, so the body identifies each: a code, a receipt, or the sale.
function response(status, headers, body)
  if status ~= 200 then
    refused = refused + 1
  elseif #body == 36 then
    reserved = reserved + 1
    codes[#codes + 1] = body
  elseif body:find('"success":true', 1, true) then
    bought = bought + 1
  else
    looked = looked + 1
  end
end

function done()
  for _, name in ipairs({ "reserved", "bought", "looked", "refused" }) do
    local total = 0
    for _, thread in ipairs(threads) do total = total + thread:get(name) end
    print(total .. " " .. name)
  end
end
