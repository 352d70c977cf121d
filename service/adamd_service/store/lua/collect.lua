-- Lists the garbage that may be unlinked now: what was put there before the oldest active reader began.
--
-- KEYS  1 garbage   2 readers (lease -> when it began)
-- ARGV  1 nonce  2 seconds that a lease lasts  3 most entries to return
-- Returns {nonce, entry…}: unlink.lua unlinks what an entry names and then removes the entry. A caller that dies in
-- between leaves work to the next one, and no chunk without a name.
local garbage_key, readers_key = KEYS[1], KEYS[2]
local nonce, lease_seconds, max_entries = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local now = tonumber(redis.call('TIME')[1])
local entries = redis.call('LRANGE', garbage_key, 0, max_entries - 1)
redis.call('ZREMRANGEBYSCORE', readers_key, '-inf', '(' .. (now - lease_seconds))
local oldest_reader = tonumber(redis.call('ZRANGE', readers_key, 0, 0, 'WITHSCORES')[2])
local answer = {nonce}
for _, entry in ipairs(entries) do
  local decoded, garbage = pcall(cjson.decode, entry)
  local at = decoded and type(garbage) == 'table' and tonumber(garbage.at)
  -- A damaged entry has no time. It is returned too; the caller unlinks nothing for it.
  if oldest_reader and at and at >= oldest_reader then
    break
  end
  answer[#answer + 1] = entry
end
return answer
