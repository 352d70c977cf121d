-- Notes that a session may have extents from now on, for the server start that has the bulk directory.
--
-- KEYS  1 identity of the directory   2 sessions that may have extents
-- ARGV  1 nonce  2 identity of the caller's start  3 session
-- Returns {nonce, verdict}: noted (also again) | moved (a later start, or another directory, is known)
local identity_key, sessions_key = KEYS[1], KEYS[2]
local nonce, identity, session = ARGV[1], ARGV[2], ARGV[3]

if redis.call('GET', identity_key) ~= identity then
  return {nonce, 'moved'}
end
redis.call('SADD', sessions_key, session)
return {nonce, 'noted'}
