-- Makes a session's head, once its first snapshot's chunks are there.
--
-- KEYS  1 head   2 tombstone   3… chunks
-- ARGV  1 nonce  2 incarnation  3 number of fields and values  4… fields and values, then lengths of the chunks
-- Returns {nonce, verdict}: created (also again, for the same incarnation) | gone | taken | chunks
local fields = tonumber(ARGV[3])
if redis.call('EXISTS', KEYS[2]) == 1 then
  return {ARGV[1], 'gone'}
end
local known = redis.call('HGET', KEYS[1], 'incarnation')
if known then
  return {ARGV[1], known == ARGV[2] and 'created' or 'taken'}
end
for i = 4 + fields, #ARGV do
  if redis.call('STRLEN', KEYS[i - fields - 1]) ~= tonumber(ARGV[i]) then
    return {ARGV[1], 'chunks'}
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 4, 3 + fields))
for i = 3, #KEYS do
  redis.call('PERSIST', KEYS[i])
end
return {ARGV[1], 'created'}
