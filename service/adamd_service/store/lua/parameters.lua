-- Sets the parameters of a session that has made no step: a new first snapshot, and a new chain 0.
--
-- KEYS  1 head   2 garbage   3… chunks
-- ARGV  1 nonce  2 incarnation  3 chain expected  4 chain  5 snapshots  6 the snapshot  7… lengths of the chunks
-- Returns {nonce, verdict}: set (also again) | moved | chunks
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'chain', 'step', 'snapshots')
if head[1] ~= ARGV[2] then
  return {ARGV[1], 'moved'}
end
-- Sent again, steps may have followed already: what counts is whether the head names this very snapshot.
local unnamed = cjson.decode(head[4])
for _, known in ipairs(unnamed) do
  if known.id == cjson.decode(ARGV[6]).id then
    return {ARGV[1], 'set'}
  end
end
if head[2] ~= ARGV[3] or head[3] ~= '0' then
  return {ARGV[1], 'moved'}
end
for i = 7, #ARGV do
  if redis.call('STRLEN', KEYS[i - 4]) ~= tonumber(ARGV[i]) then
    return {ARGV[1], 'chunks'}
  end
end
redis.call('HSET', KEYS[1], 'chain', ARGV[4], 'snapshots', ARGV[5], 'newest', ARGV[6], 'parameters_missing', '0')
for i = 3, #KEYS do
  redis.call('PERSIST', KEYS[i])
end
local now = redis.call('TIME')[1]
for _, snapshot in ipairs(unnamed) do
  redis.call('RPUSH', KEYS[2], cjson.encode({kind = 'snapshot', at = tonumber(now), snapshot = snapshot}))
end
return {ARGV[1], 'set'}
