-- Says what may be unlinked now: garbage that was unnamed before the oldest reader at work began.
--
-- KEYS  1 garbage   2 readers (lease -> when it began)
-- ARGV  1 nonce  2 seconds that a lease lasts  3 how many entries at most
-- Returns {nonce, entry…}: unlink.lua unlinks what each of them names and strikes it off the list, so that a caller
-- which dies in between leaves work to the next one, and no chunk without a name.
local now = tonumber(redis.call('TIME')[1])
local entries = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[3]) - 1)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. (now - tonumber(ARGV[2])))
local oldest = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2])
local found = {ARGV[1]}
for _, entry in ipairs(entries) do
  local readable, garbage = pcall(cjson.decode, entry)
  local at = readable and type(garbage) == 'table' and tonumber(garbage.at)
  -- A damaged entry does not say when it began; the caller looks at it, and unlinks nothing for it.
  if oldest and at and at >= oldest then
    break
  end
  found[#found + 1] = entry
end
return found
