-- Drops the contributions of the open round, which begins again. A step that is being made of them fails.
--
-- KEYS  1 head   2 round   3 pending contributions   4 garbage   5 evaluations
-- ARGV  1 nonce  2 incarnation that the head must have  3 round  4 id of this call  5 config of the round
-- Returns {nonce, verdict}: cancelled (also again, by this call) | moved
--
-- Everything that can fail stands before the first write, which frees memory.
local head_key, round_key, pending_key, garbage_key, evaluations_key = unpack(KEYS)
local nonce, expected_incarnation, round, call, config = unpack(ARGV)

local incarnation, step = unpack(redis.call('HMGET', head_key, 'incarnation', 'step'))
if incarnation ~= expected_incarnation or tonumber(step) + 1 ~= tonumber(round) then
  return {nonce, 'moved'}
end
local known_call, tries, clip_norm = unpack(redis.call('HMGET', round_key, 'cancelled', 'tries', 'clip_norm'))
if known_call == call then
  return {nonce, 'cancelled'}
end
redis.call('LLEN', garbage_key)
local dropped = redis.call('HGETALL', pending_key)
local time = redis.call('TIME')

redis.call('DEL', pending_key, evaluations_key, round_key)
redis.call('HSET', round_key, 'number', round, 'opened_at', string.format('%d.%06d', time[1], time[2]),
  'tries', string.format('%.0f', (tonumber(tries or '') or 0) + 1), 'first_at', '', 'config', config,
  'clip_norm', clip_norm or '', 'cancelled', call)
for i = 1, #dropped, 2 do
  redis.call('RPUSH', garbage_key, '{"kind":"contribution","at":' .. time[1] .. ',"name":"' .. dropped[i]
    .. '","contribution":' .. dropped[i + 1] .. '}')
end
return {nonce, 'cancelled'}
