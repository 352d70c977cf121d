-- Sets the parameters of a session that has made no step: a new first snapshot, and a new chain 0.
--
-- KEYS  1 head   2 garbage   3… chunks
-- ARGV  1 nonce  2 incarnation  3 chain expected  4 chain  5 snapshots  6 the snapshot  7… lengths of the chunks
-- Returns {nonce, verdict}: set (also again) | moved | chunks | damaged (the head is)
--
-- Everything that can fail stands before the first write.
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'chain', 'step', 'snapshots')
if head[1] ~= ARGV[2] then
  return {ARGV[1], 'moved'}
end
-- Sent again, steps may have followed already: what counts is whether the head names this very snapshot.
local listed, unnamed = pcall(cjson.decode, head[4] or '')
if not listed or type(unnamed) ~= 'table' then
  return {ARGV[1], 'damaged'}
end
for _, known in ipairs(unnamed) do
  if type(known) ~= 'table' then
    return {ARGV[1], 'damaged'}
  elseif known.id == cjson.decode(ARGV[6]).id then
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
redis.call('LLEN', KEYS[2])
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], 'chain', ARGV[4], 'snapshots', ARGV[5], 'newest', ARGV[6], 'parameters_missing', '0')
for i = 3, #KEYS do
  redis.call('PERSIST', KEYS[i])
end
for _, snapshot in ipairs(unnamed) do
  redis.call('RPUSH', KEYS[2], cjson.encode({kind = 'snapshot', at = now, snapshot = snapshot}))
end
return {ARGV[1], 'set'}
