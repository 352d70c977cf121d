-- Lets the time of an open round count from now, where its first contribution is to come only: the store's clock went
-- back. So its deadline moves by its own length at most, however far the clock went.
--
-- KEYS  1 round
-- ARGV  1 nonce  2 number that the round must have
-- Returns {nonce, verdict}: now | kept
local round_key = KEYS[1]
local nonce, number = ARGV[1], ARGV[2]

local known_number, first_at = unpack(redis.call('HMGET', round_key, 'number', 'first_at'))
local time = redis.call('TIME')
if known_number ~= number or (tonumber(first_at or '') or 0) <= tonumber(time[1]) + tonumber(time[2]) / 1e6 then
  return {nonce, 'kept'}
end
redis.call('HSET', round_key, 'first_at', string.format('%d.%06d', time[1], time[2]))
return {nonce, 'now'}
