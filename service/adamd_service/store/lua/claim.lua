-- Claims a name and an Idempotency-Key for a session that is about to be created. The index has a slot of its own, so
-- create.lua cannot do it too: a claim whose session never came is released by the next creation that meets it.
--
-- KEYS  1 names   2 sessions   3 former owner of the name   4 idempotency   5 sign that the creation is under way
-- ARGV  1 nonce  2 id  3 name ("" if none)  4 created_at  5 digest of the creation ("" without an Idempotency-Key)
--       6 seconds that the Idempotency-Key lasts  7 milliseconds that the creation may take  8 sessions allowed
-- Returns {nonce, verdict[, detail]}: claimed | name (id of its owner) | key ("digest id") | full
--
-- Everything that can fail stands before the first write.
local names_key, sessions_key, former_key, idempotency_key, claim_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local nonce, id, name, created_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local digest, idempotency_seconds = ARGV[5], ARGV[6]
local creation_ms, max_sessions = ARGV[7], tonumber(ARGV[8])
local idempotency = digest .. ' ' .. id

if digest ~= '' then
  local known = redis.call('GET', idempotency_key)
  if known and known ~= idempotency then
    return {nonce, 'key', known}
  end
end
if name ~= '' then
  local owner = redis.call('HGET', names_key, name)
  if owner and owner ~= id then
    return {nonce, 'name', owner}
  end
end
if redis.call('ZCARD', sessions_key) >= max_sessions and not redis.call('ZSCORE', sessions_key, id) then
  return {nonce, 'full'}
end

if name ~= '' then
  redis.call('HSET', names_key, name, id)
  redis.call('DEL', former_key)
end
redis.call('ZADD', sessions_key, created_at, id)
if digest ~= '' then
  redis.call('SET', idempotency_key, idempotency, 'EX', idempotency_seconds)
end
redis.call('SET', claim_key, '1', 'PX', creation_ms)
return {nonce, 'claimed'}
