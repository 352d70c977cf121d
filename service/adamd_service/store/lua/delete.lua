-- Ends a session: a tombstone for a day, no head, and everything that it named becomes garbage.
--
-- KEYS  1 head   2 tombstone   3 garbage   4 ring   5 readers
-- ARGV  1 nonce  2 seconds that the tombstone stands  3 what the tombstone says  4 "any" or "absent": absent fences
--       a session that was claimed but never made  5 chain expected ("": any)
--       6 "damaged" if the head is known to be: then what it names is not believed, and every key of the session goes
-- Returns {nonce, verdict}: deleted (also again) | present | moved (its chain is another one)
--
-- The first write frees memory, so that a full store lets itself be emptied: only a script's first write is refused.
-- A damaged session can be deleted too: nothing here depends on what its keys hold.
local kind, head = redis.call('TYPE', KEYS[1]).ok, {}
if kind == 'hash' then
  head = redis.call('HMGET', KEYS[1], 'snapshots', 'log_first', 'step', 'chain')
end
if kind ~= 'none' and ARGV[4] == 'absent' then
  return {ARGV[1], 'present'}
end
if kind ~= 'none' and ARGV[5] ~= '' and head[4] ~= ARGV[5] then
  return {ARGV[1], 'moved'}
end
local now, unnamed = tonumber(redis.call('TIME')[1]), {}
local garbage = redis.call('TYPE', KEYS[3]).ok
local listed, snapshots = pcall(cjson.decode, head[1] or '')
local first, last = tonumber(head[2]), tonumber(head[3])
local spoiled = garbage ~= 'list' and garbage ~= 'none'
if spoiled or (kind ~= 'none' and (ARGV[6] == 'damaged' or type(snapshots) ~= 'table' or not (first and last))) then
  unnamed[1] = cjson.encode({kind = 'everything', at = now})
elseif kind ~= 'none' then
  for _, snapshot in ipairs(snapshots) do
    unnamed[#unnamed + 1] = cjson.encode({kind = 'snapshot', at = now, snapshot = snapshot})
  end
  if last >= first then
    unnamed[#unnamed + 1] = cjson.encode({kind = 'records', at = now, first = head[2], last = head[3]})
  end
end
redis.call('DEL', KEYS[1], KEYS[4], KEYS[5])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
if spoiled then
  redis.call('DEL', KEYS[3])
end
for _, entry in ipairs(unnamed) do
  redis.call('RPUSH', KEYS[3], entry)
end
return {ARGV[1], 'deleted'}
