-- Makes a written snapshot the newest, keeps the one before it, and unnames what is older. What is unnamed is
-- unlinked later (see collect.lua): a reader that still follows the old names gets time, or starts again.
--
-- KEYS  1 head   2 ring   3 record of the snapshot's step   4 garbage   5… chunks
-- ARGV  1 nonce  2 incarnation  3 step  4 chain  5 snapshot  6 bytes of log that it covers  7 ring slot
--       8… lengths of the chunks
-- Returns {nonce, verdict}: kept | moved (another history, or a newer snapshot is there) | chunks
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'step', 'chain', 'snapshots', 'log_first', 'log_bytes')
if head[1] ~= ARGV[2] or tonumber(head[2]) < tonumber(ARGV[3]) then
  return {ARGV[1], 'moved'}
end
-- The step alone would not do: after the store went back, the same number may name another history.
local chain = redis.call('HGET', KEYS[3], 'chain')
if head[2] == ARGV[3] then
  chain = head[3]
end
if chain ~= ARGV[4] then
  return {ARGV[1], 'moved'}
end
local snapshots = cjson.decode(head[4])
local newest = snapshots[#snapshots]
local snapshot = cjson.decode(ARGV[5])
if newest.id == snapshot.id then
  return {ARGV[1], 'kept'}
end
if newest.step >= snapshot.step then
  return {ARGV[1], 'moved'}
end
for i = 8, #ARGV do
  if redis.call('STRLEN', KEYS[i - 3]) ~= tonumber(ARGV[i]) then
    return {ARGV[1], 'chunks'}
  end
end
-- Texts are joined, not decoded and encoded again: cjson would turn an empty list into an empty object.
redis.call('HSET', KEYS[1], 'snapshots', '[' .. redis.call('HGET', KEYS[1], 'newest') .. ',' .. ARGV[5] .. ']', 'newest', ARGV[5])
for i = 5, #KEYS do
  redis.call('PERSIST', KEYS[i])
end
local covered = math.min(tonumber(ARGV[6]), tonumber(head[6]))
redis.call('HINCRBY', KEYS[1], 'log_bytes', string.format('%.0f', -covered))
local now = tonumber(redis.call('TIME')[1])
if #snapshots > 1 then
  redis.call('RPUSH', KEYS[4], cjson.encode({kind = 'snapshot', at = now, snapshot = snapshots[1]}))
end
local first, last = tonumber(head[5]), newest.step
if last >= first then
  redis.call('RPUSH', KEYS[4], cjson.encode({kind = 'records', at = now, first = head[5], last = string.format('%.0f', last)}))
  redis.call('HSET', KEYS[1], 'log_first', string.format('%.0f', last + 1))
end
return {ARGV[1], 'kept'}
