-- Claims a name and an Idempotency-Key for a session that is about to be made. The index has a slot of its own, so
-- this cannot be one script with create.lua: a claim whose session never came is repaired by whoever meets it.
--
-- KEYS  1 names   2 sessions   3 the name's former owner   4 idempotency   5 sign that the creation is under way
-- ARGV  1 nonce  2 id  3 name ("" if none)  4 created_at  5 digest ("" without a key)  6 seconds that the key lasts
--       7 milliseconds that the creation may take from here   8 sessions that there may be
-- Returns {nonce, verdict[, detail]}: claimed | name (its owner's id) | key ("digest id") | full
--
-- Everything that can fail stands before the first write.
if ARGV[5] ~= '' then
  local known = redis.call('GET', KEYS[4])
  if known and known ~= ARGV[5] .. ' ' .. ARGV[2] then
    return {ARGV[1], 'key', known}
  end
end
if ARGV[3] ~= '' then
  local owner = redis.call('HGET', KEYS[1], ARGV[3])
  if owner and owner ~= ARGV[2] then
    return {ARGV[1], 'name', owner}
  end
end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[8]) and not redis.call('ZSCORE', KEYS[2], ARGV[2]) then
  return {ARGV[1], 'full'}
end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[3], ARGV[2])
  redis.call('DEL', KEYS[3])
end
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[2])
if ARGV[5] ~= '' then
  redis.call('SET', KEYS[4], ARGV[5] .. ' ' .. ARGV[2], 'EX', ARGV[6])
end
redis.call('SET', KEYS[5], '1', 'PX', ARGV[7])
return {ARGV[1], 'claimed'}
