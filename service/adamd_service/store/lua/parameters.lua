-- Sets the parameters of a session that has made no step: a new first snapshot, and a new chain of step 0.
--
-- KEYS  1 head   2 garbage   3 bulk token   4 pending contributions   5… chunks
-- ARGV  1 nonce  2 incarnation and 3 chain that the head must have  4 new chain
--       5 list of snapshots  6 the snapshot in it
--       7 bulk token that the session must have ("": no extent of a shared store is named)  8… bytes of each chunk
-- Returns {nonce, verdict}: set (also again) | moved | chunks | damaged (the head is)
--
-- Everything that can fail stands before the first write.
local head_key, garbage_key, bulk_key, pending_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local nonce, expected_incarnation, expected_chain, chain = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local snapshots_text, snapshot_text, bulk_token = ARGV[5], ARGV[6], ARGV[7]
local keys_before_chunks, args_before_chunks = 4, 7

local incarnation, head_chain, step, replaced_text = unpack(redis.call('HMGET', head_key, 'incarnation', 'chain',
  'step', 'snapshots'))
if incarnation ~= expected_incarnation then
  return {nonce, 'moved'}
end
-- When this is sent again, steps may have followed already. So it is done if the head names this very snapshot.
local decoded, replaced = pcall(cjson.decode, replaced_text or '')
if not decoded or type(replaced) ~= 'table' then
  return {nonce, 'damaged'}
end
for _, known in ipairs(replaced) do
  if type(known) ~= 'table' then
    return {nonce, 'damaged'}
  elseif known.id == cjson.decode(snapshot_text).id then
    return {nonce, 'set'}
  end
end
if head_chain ~= expected_chain or step ~= '0' then
  return {nonce, 'moved'}
end
-- They were made from the parameters that are there.
if redis.call('HLEN', pending_key) > 0 then
  return {nonce, 'moved'}
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
-- Fails where the garbage list is of another type, before anything is written.
redis.call('LLEN', garbage_key)

local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', head_key, 'chain', chain, 'snapshots', snapshots_text, 'newest', snapshot_text,
  'parameters_missing', '0')
for i = 1, #KEYS - keys_before_chunks do
  redis.call('PERSIST', KEYS[keys_before_chunks + i])
end
for _, snapshot in ipairs(replaced) do
  redis.call('RPUSH', garbage_key, cjson.encode({kind = 'snapshot', at = now, snapshot = snapshot}))
end
return {nonce, 'set'}
