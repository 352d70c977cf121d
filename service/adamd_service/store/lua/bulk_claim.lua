-- Makes a bulk directory the one that this store knows, unless another server was faster.
--
-- KEYS  1 identity of the directory   2 sessions that may have extents
-- ARGV  1 nonce  2 identity that the caller has read ("" if none)  3 how many sessions it has read  4 new identity
-- Returns {nonce, verdict}: claimed (also again) | moved (one of both has changed)
local identity_key, sessions_key = KEYS[1], KEYS[2]
local nonce, expected, count, identity = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local known = redis.call('GET', identity_key) or ''
if known == identity then
  return {nonce, 'claimed'}
end
if known ~= expected or redis.call('SCARD', sessions_key) ~= count then
  return {nonce, 'moved'}
end
redis.call('SET', identity_key, identity)
return {nonce, 'claimed'}
