-- Drops the contributions of the open round, which begins again. A step that is being made of them fails.
--
-- KEYS  1 head   2 round   3 pending contributions   4 garbage   5 evaluations
-- ARGV  1 nonce  2 incarnation that the head must have  3 round  4 id of this call  5 config of the round
--       6 token that the round must be frozen with: its members alone are dropped ("": all are, frozen or not)
--       7 why, where it failed ("": it did not)
-- Returns {nonce, verdict}: cancelled (also again, by this call) | moved
--
-- Everything that can fail stands before the first write, which frees memory.
local head_key, round_key, pending_key, garbage_key, evaluations_key = unpack(KEYS)
local nonce, expected_incarnation, round, call, config, expected_token, failure = unpack(ARGV)

local incarnation, step = unpack(redis.call('HMGET', head_key, 'incarnation', 'step'))
if incarnation ~= expected_incarnation or tonumber(step) + 1 ~= tonumber(round) then
  return {nonce, 'moved'}
end
local known_call, tries, clip_norm, token, members = unpack(redis.call('HMGET', round_key, 'cancelled', 'tries',
  'clip_norm', 'token', 'members'))
if known_call == call then
  return {nonce, 'cancelled'}
end
if expected_token ~= '' and token ~= expected_token then
  return {nonce, 'moved'}
end
redis.call('LLEN', garbage_key)
local dropped = expected_token ~= '' and cjson.decode(members) or redis.call('HKEYS', pending_key)
local texts = {}
for i, member in ipairs(dropped) do
  texts[i] = redis.call('HGET', pending_key, member)
end
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])

redis.call('DEL', evaluations_key, round_key)
for i, member in ipairs(dropped) do
  redis.call('HDEL', pending_key, member)
  if texts[i] then
    redis.call('RPUSH', garbage_key, '{"kind":"contribution","at":' .. time[1] .. ',"name":"' .. member
      .. '","contribution":' .. texts[i] .. '}')
  end
end
redis.call('HSET', round_key, 'number', round, 'opened_at', now,
  'tries', string.format('%.0f', (tonumber(tries or '') or 0) + 1),
  'first_at', redis.call('HLEN', pending_key) > 0 and now or '', 'config', config,
  'clip_norm', clip_norm or '', 'cancelled', call, 'failure', failure)
return {nonce, 'cancelled'}
