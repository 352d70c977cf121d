-- Lets a frozen round take contributions again, where its step could not be made.
--
-- KEYS  1 round
-- ARGV  1 nonce  2 token of the freezing
-- Returns {nonce, verdict}: thawed | moved (it is not frozen so)
local round_key = KEYS[1]
local nonce, token = ARGV[1], ARGV[2]

if redis.call('HGET', round_key, 'token') ~= token then
  return {nonce, 'moved'}
end
redis.call('HDEL', round_key, 'token', 'why', 'frozen_at', 'replica', 'members')
return {nonce, 'thawed'}
