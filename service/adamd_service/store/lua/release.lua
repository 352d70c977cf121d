-- Releases what a session has claimed in the index, as far as it is still that session's.
--
-- KEYS  1 names   2 sessions   3 former owner of the name   4 idempotency   5 sign that the creation is under way
-- ARGV  1 nonce  2 id  3 name ("" if none)  4 seconds that the name is remembered as deleted (0: it is not)
--       5 digest of the creation ("" without an Idempotency-Key)
-- Returns {nonce, "released"}
--
-- Everything that can fail stands before the first write.
local names_key, sessions_key, former_key, idempotency_key, claim_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local nonce, id, name, former_seconds, digest = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local owns_name = name ~= '' and redis.call('HGET', names_key, name) == id
local owns_idempotency = digest ~= '' and redis.call('GET', idempotency_key) == digest .. ' ' .. id

redis.call('ZREM', sessions_key, id)
redis.call('DEL', claim_key)
if owns_name then
  redis.call('HDEL', names_key, name)
  if former_seconds ~= '0' then
    redis.call('SET', former_key, id, 'EX', former_seconds)
  end
end
if owns_idempotency then
  redis.call('DEL', idempotency_key)
end
return {nonce, 'released'}
