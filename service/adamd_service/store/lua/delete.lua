-- Ends a session: a tombstone for a day, no head, and everything that it named becomes garbage.
--
-- KEYS  1 head   2 tombstone   3 garbage   4 ring   5 readers
-- ARGV  1 nonce  2 seconds that the tombstone stands  3 what the tombstone says  4 "any" or "absent": absent fences
--       a session that was claimed but never made  5 chain expected ("": any)
-- Returns {nonce, verdict}: deleted (also again) | present | moved (its chain is another one)
--
-- The first write frees memory, so that a full store lets itself be emptied: only a script's first write is refused.
local head = redis.call('HMGET', KEYS[1], 'snapshots', 'log_first', 'step', 'chain')
if head[3] and ARGV[4] == 'absent' then
  return {ARGV[1], 'present'}
end
if head[3] and ARGV[5] ~= '' and head[4] ~= ARGV[5] then
  return {ARGV[1], 'moved'}
end
local unnamed = {}
if head[3] then
  local now = tonumber(redis.call('TIME')[1])
  for _, snapshot in ipairs(cjson.decode(head[1])) do
    unnamed[#unnamed + 1] = cjson.encode({kind = 'snapshot', at = now, snapshot = snapshot})
  end
  if tonumber(head[3]) >= tonumber(head[2]) then
    unnamed[#unnamed + 1] = cjson.encode({kind = 'records', at = now, first = head[2], last = head[3]})
  end
end
redis.call('DEL', KEYS[1], KEYS[4], KEYS[5])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
for _, entry in ipairs(unnamed) do
  redis.call('RPUSH', KEYS[3], entry)
end
return {ARGV[1], 'deleted'}
