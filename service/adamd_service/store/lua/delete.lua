-- Ends a session: its head goes, a tombstone stands for a day, and everything that the head named becomes garbage.
--
-- KEYS  1 head   2 tombstone   3 garbage   4 ring   5 readers   6 bulk token   7 round   8 pending contributions
--       9 who was counted   10 clients   11 evaluations
-- ARGV  1 nonce  2 seconds that the tombstone stands  3 text of the tombstone
--       4 "any", or "absent": end a session only if it was claimed and never created
--       5 chain that the head must have ("": any)
--       6 "damaged" if the head is: what it names is not trusted, and every key of the session becomes garbage
-- Returns {nonce, verdict}: deleted (also again) | present | moved (the chain is another one)
--
-- The first write frees memory, because a full store refuses a script at its first write only: so a full store can be
-- emptied. A damaged session can be deleted too: nothing here depends on what its keys hold.
local head_key, tombstone_key, garbage_key, ring_key, readers_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local bulk_key, round_key, pending_key, counted_key, clients_key = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local evaluations_key = KEYS[11]
local nonce, tombstone_seconds, tombstone = ARGV[1], ARGV[2], ARGV[3]
local mode, expected_chain, damaged = ARGV[4], ARGV[5], ARGV[6] == 'damaged'

local head_type = redis.call('TYPE', head_key).ok
local snapshots_text, log_first, step, chain
if head_type == 'hash' then
  snapshots_text, log_first, step, chain = unpack(redis.call('HMGET', head_key, 'snapshots', 'log_first', 'step',
    'chain'))
end
local exists = head_type ~= 'none'
if exists and mode == 'absent' then
  return {nonce, 'present'}
end
if exists and expected_chain ~= '' and chain ~= expected_chain then
  return {nonce, 'moved'}
end
local now = tonumber(redis.call('TIME')[1])
local garbage_type = redis.call('TYPE', garbage_key).ok
local garbage_damaged = garbage_type ~= 'list' and garbage_type ~= 'none'
local _, snapshots = pcall(cjson.decode, snapshots_text or '')
local first, last = tonumber(log_first), tonumber(step)
local garbage = {}
if garbage_damaged or (exists and (damaged or type(snapshots) ~= 'table' or not (first and last))) then
  garbage[1] = cjson.encode({kind = 'everything', at = now})
elseif exists then
  for _, snapshot in ipairs(snapshots) do
    garbage[#garbage + 1] = cjson.encode({kind = 'snapshot', at = now, snapshot = snapshot})
  end
  if last >= first then
    garbage[#garbage + 1] = cjson.encode({kind = 'records', at = now, first = log_first, last = step})
  end
  if redis.call('EXISTS', round_key) == 1 then
    garbage[#garbage + 1] = cjson.encode({kind = 'rounds', at = now, last = step})
  end
  local waiting = redis.call('TYPE', pending_key).ok == 'hash' and redis.call('HGETALL', pending_key) or {}
  for i = 1, #waiting, 2 do
    garbage[#garbage + 1] = '{"kind":"contribution","at":' .. now .. ',"name":"' .. waiting[i] .. '","contribution":'
      .. waiting[i + 1] .. '}'
  end
end

redis.call('DEL', head_key, ring_key, readers_key, bulk_key, round_key, pending_key, counted_key, clients_key,
  evaluations_key)
redis.call('SET', tombstone_key, tombstone, 'EX', tombstone_seconds)
if garbage_damaged then
  redis.call('DEL', garbage_key)
end
for _, entry in ipairs(garbage) do
  redis.call('RPUSH', garbage_key, entry)
end
return {nonce, 'deleted'}
