-- Writes a session's head, once the chunks of its first snapshot are there.
--
-- KEYS  1 head   2 tombstone   3 bulk token   4… chunks
-- ARGV  1 nonce  2 incarnation  3 bulk token that the session must have ("": no extent of a shared store is named)
--       4 how many fields and values follow  5… fields and values, then bytes of each chunk
-- Returns {nonce, verdict}: created (also again, for the same incarnation) | gone | taken | chunks
local head_key, tombstone_key, bulk_key = KEYS[1], KEYS[2], KEYS[3]
local nonce, incarnation, bulk_token, field_args = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local keys_before_chunks, args_before_chunks = 3, 4 + field_args

if redis.call('EXISTS', tombstone_key) == 1 then
  return {nonce, 'gone'}
end
local known = redis.call('HGET', head_key, 'incarnation')
if known then
  return {nonce, known == incarnation and 'created' or 'taken'}
end
-- A later start has the bulk directory, and may have used the extents for something else.
if bulk_token ~= '' and redis.call('GET', bulk_key) ~= bulk_token then
  return {nonce, 'chunks'}
end
for i = 1, #KEYS - keys_before_chunks do
  if redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~= tonumber(ARGV[args_before_chunks + i]) then
    return {nonce, 'chunks'}
  end
end
redis.call('HSET', head_key, unpack(ARGV, 5, 4 + field_args))
for i = 1, #KEYS - keys_before_chunks do
  redis.call('PERSIST', KEYS[keys_before_chunks + i])
end
return {nonce, 'created'}
