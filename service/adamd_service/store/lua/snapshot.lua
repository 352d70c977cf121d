-- Makes a written snapshot the newest, keeps the one before it, and unnames what is older. What is unnamed is
-- unlinked later (see collect.lua): a reader that still follows the old names gets time, or starts again.
--
-- KEYS  1 head   2 record of the snapshot's step   3 garbage   4… chunks
-- ARGV  1 nonce  2 incarnation  3 chain  4 snapshot  5 bytes of log that it covers
--       6 id of the newest snapshot if it is damaged: then this one takes its place, and the one before it stays
--         ("": it is whole)  7… lengths of the chunks
-- Returns {nonce, verdict}: kept (also again) | chunks | damaged (the head is)
--                           | moved (another history, or a newer snapshot is there)
--
-- Everything that can fail stands before the first write.
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'snapshots', 'log_first', 'log_bytes', 'newest')
if head[1] ~= ARGV[2] then
  return {ARGV[1], 'moved'}
end
local listed, snapshots = pcall(cjson.decode, head[2] or '')
if not listed or type(snapshots) ~= 'table' then
  return {ARGV[1], 'damaged'}
end
local snapshot = cjson.decode(ARGV[4])
for _, known in ipairs(snapshots) do
  if type(known) ~= 'table' then
    return {ARGV[1], 'damaged'}
  elseif known.id == snapshot.id then
    return {ARGV[1], 'kept'}
  end
end
local newest, text, replaced = snapshots[#snapshots], head[5] or '', ARGV[6] ~= ''
local first, logged = tonumber(head[3]), tonumber(head[4])
-- The step alone would not do: after the store went back, the same number may name another history. A step that is
-- not there yet has no record, so no chain.
if redis.call('HGET', KEYS[2], 'chain') ~= ARGV[3] or not newest then
  return {ARGV[1], 'moved'}
end
if replaced then
  if newest.id ~= ARGV[6] or #snapshots < 2 then
    return {ARGV[1], 'moved'}
  end
elseif type(newest.step) ~= 'number' or not first then
  return {ARGV[1], 'damaged'}
elseif newest.step >= snapshot.step then
  return {ARGV[1], 'moved'}
end
if text == '' or string.sub(head[2], -#text - 1) ~= text .. ']' then
  return {ARGV[1], 'damaged'}
end
for i = 7, #ARGV do
  if redis.call('STRLEN', KEYS[i - 3]) ~= tonumber(ARGV[i]) then
    return {ARGV[1], 'chunks'}
  end
end
redis.call('LLEN', KEYS[3])
local now = tonumber(redis.call('TIME')[1])
local left = logged and math.max(0, logged - tonumber(ARGV[5])) or 0
-- Texts are joined, not decoded and encoded again: cjson would turn an empty list into an empty object.
local kept, unnamed = text, #snapshots > 1 and snapshots[1]
if replaced then
  kept, unnamed = string.sub(head[2], 2, -#text - 3), newest
end
local garbage = {}
if unnamed then
  garbage[1] = cjson.encode({kind = 'snapshot', at = now, snapshot = unnamed})
end
if not replaced and newest.step >= first then
  local last = string.format('%.0f', newest.step)
  garbage[#garbage + 1] = cjson.encode({kind = 'records', at = now, first = head[3], last = last})
  first = newest.step + 1
end
redis.call('HSET', KEYS[1], 'snapshots', '[' .. kept .. ',' .. ARGV[4] .. ']', 'newest', ARGV[4],
  'log_bytes', string.format('%.0f', left), 'log_first', first and string.format('%.0f', first) or head[3])
for i = 4, #KEYS do
  redis.call('PERSIST', KEYS[i])
end
for _, entry in ipairs(garbage) do
  redis.call('RPUSH', KEYS[3], entry)
end
return {ARGV[1], 'kept'}
