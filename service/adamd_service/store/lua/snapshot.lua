-- Makes a written snapshot the newest, keeps the one before it, and unnames what is older. What is unnamed is
-- unlinked later (see collect.lua): a reader that still follows the old names gets time, or starts again.
--
-- KEYS  1 head   2 record of the snapshot's step   3 garbage   4… chunks
-- ARGV  1 nonce  2 incarnation  3 chain  4 snapshot  5 bytes of log that it covers  6… lengths of the chunks
-- Returns {nonce, verdict}: kept (also again) | moved (another history, or a newer snapshot is there) | chunks
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'snapshots', 'log_first', 'log_bytes')
if head[1] ~= ARGV[2] then
  return {ARGV[1], 'moved'}
end
local snapshots = cjson.decode(head[2])
local snapshot = cjson.decode(ARGV[4])
for _, known in ipairs(snapshots) do
  if known.id == snapshot.id then
    return {ARGV[1], 'kept'}
  end
end
-- The step alone would not do: after the store went back, the same number may name another history. A step that is
-- not there yet has no record, so no chain.
local newest = snapshots[#snapshots]
if redis.call('HGET', KEYS[2], 'chain') ~= ARGV[3] or not newest or newest.step >= snapshot.step then
  return {ARGV[1], 'moved'}
end
for i = 6, #ARGV do
  if redis.call('STRLEN', KEYS[i - 2]) ~= tonumber(ARGV[i]) then
    return {ARGV[1], 'chunks'}
  end
end
-- Texts are joined, not decoded and encoded again: cjson would turn an empty list into an empty object.
local both = '[' .. redis.call('HGET', KEYS[1], 'newest') .. ',' .. ARGV[4] .. ']'
redis.call('HSET', KEYS[1], 'snapshots', both, 'newest', ARGV[4])
for i = 4, #KEYS do
  redis.call('PERSIST', KEYS[i])
end
local left = math.max(0, tonumber(head[4]) - tonumber(ARGV[5]))
redis.call('HSET', KEYS[1], 'log_bytes', string.format('%.0f', left))
local now = tonumber(redis.call('TIME')[1])
if #snapshots > 1 then
  redis.call('RPUSH', KEYS[3], cjson.encode({kind = 'snapshot', at = now, snapshot = snapshots[1]}))
end
local first, last = tonumber(head[3]), newest.step
if last >= first then
  redis.call('RPUSH', KEYS[3], cjson.encode({kind = 'records', at = now, first = head[3], last = string.format('%.0f', last)}))
  redis.call('HSET', KEYS[1], 'log_first', string.format('%.0f', last + 1))
end
return {ARGV[1], 'kept'}
