-- Makes a written snapshot the newest, keeps the one before it, and puts what is older into the garbage. That is
-- unlinked later (see collect.lua): a reader that still follows the old names gets time, or starts again.
--
-- KEYS  1 head   2 record of the snapshot's step   3 garbage   4 bulk token   5… chunks
-- ARGV  1 nonce  2 incarnation that the head must have  3 chain that the step must have  4 snapshot
--       5 bytes of log that it covers
--       6 id of the newest snapshot if that is damaged: this one replaces it, and the one before it stays
--         ("": it is not damaged)
--       7 bulk token that the session must have ("": no extent of a shared store is named)  8… bytes of each chunk
-- Returns {nonce, verdict}: kept (also again) | chunks | damaged (the head is)
--                           | moved (another history, or a newer snapshot is there)
--
-- Everything that can fail stands before the first write.
local head_key, record_key, garbage_key, bulk_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local nonce, expected_incarnation, chain, snapshot_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local covered_bytes, damaged_id, bulk_token = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local keys_before_chunks, args_before_chunks = 4, 7

local incarnation, snapshots_text, log_first, log_bytes, newest_text = unpack(redis.call('HMGET', head_key,
  'incarnation', 'snapshots', 'log_first', 'log_bytes', 'newest'))
if incarnation ~= expected_incarnation then
  return {nonce, 'moved'}
end
local decoded, snapshots = pcall(cjson.decode, snapshots_text or '')
if not decoded or type(snapshots) ~= 'table' then
  return {nonce, 'damaged'}
end
local snapshot = cjson.decode(snapshot_text)
for _, known in ipairs(snapshots) do
  if type(known) ~= 'table' then
    return {nonce, 'damaged'}
  elseif known.id == snapshot.id then
    return {nonce, 'kept'}
  end
end
local newest, replaces = snapshots[#snapshots], damaged_id ~= ''
local first, logged = tonumber(log_first), tonumber(log_bytes)
newest_text = newest_text or ''
-- The step alone would not do: after the store went back, the same number may belong to another history. A step that
-- is not there yet has no record, so no chain.
if redis.call('HGET', record_key, 'chain') ~= chain or not newest then
  return {nonce, 'moved'}
end
if replaces then
  if newest.id ~= damaged_id or #snapshots < 2 then
    return {nonce, 'moved'}
  end
elseif type(newest.step) ~= 'number' or not first then
  return {nonce, 'damaged'}
elseif newest.step >= snapshot.step then
  return {nonce, 'moved'}
end
if newest_text == '' or string.sub(snapshots_text, -#newest_text - 1) ~= newest_text .. ']' then
  return {nonce, 'damaged'}
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
local log_left = logged and math.max(0, logged - covered_bytes) or 0
-- Texts are joined, not decoded and encoded again: cjson would turn an empty list into an empty object.
local kept_text, dropped = newest_text, #snapshots > 1 and snapshots[1]
if replaces then
  kept_text, dropped = string.sub(snapshots_text, 2, -#newest_text - 3), newest
end
local garbage = {}
if dropped then
  garbage[1] = cjson.encode({kind = 'snapshot', at = now, snapshot = dropped})
end
if not replaces and newest.step >= first then
  local last = string.format('%.0f', newest.step)
  garbage[#garbage + 1] = cjson.encode({kind = 'records', at = now, first = log_first, last = last})
  first = newest.step + 1
end

redis.call('HSET', head_key, 'snapshots', '[' .. kept_text .. ',' .. snapshot_text .. ']', 'newest', snapshot_text,
  'log_bytes', string.format('%.0f', log_left), 'log_first', first and string.format('%.0f', first) or log_first)
for i = 1, #KEYS - keys_before_chunks do
  redis.call('PERSIST', KEYS[keys_before_chunks + i])
end
for _, entry in ipairs(garbage) do
  redis.call('RPUSH', garbage_key, entry)
end
return {nonce, 'kept'}
