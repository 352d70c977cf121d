-- Notes what a client measured at the parameters that the open round begins with.
--
-- KEYS  1 head   2 evaluations
-- ARGV  1 nonce  2 incarnation that the head must have  3 round  4 client  5 evaluation, as text
--       6 evaluations that a round takes
-- Returns {nonce, verdict, evaluations that are there, open round}:
--         accepted | duplicate | conflict | ahead | closed | full | moved
local head_key, evaluations_key = KEYS[1], KEYS[2]
local nonce, expected_incarnation, round, client, evaluation = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local most = tonumber(ARGV[6])

local incarnation, step = unpack(redis.call('HMGET', head_key, 'incarnation', 'step'))
if incarnation ~= expected_incarnation then
  return {nonce, 'moved'}
end
local open, received = tonumber(step) + 1, redis.call('HLEN', evaluations_key)
local function answer(verdict)
  return {nonce, verdict, tostring(received), string.format('%.0f', open)}
end
if round ~= open then
  return answer(round > open and 'ahead' or 'closed')
end
local known = redis.call('HGET', evaluations_key, client)
if known then
  return answer(known == evaluation and 'duplicate' or 'conflict')
end
if received >= most then
  return answer('full')
end
redis.call('HSET', evaluations_key, client, evaluation)
received = received + 1
return answer('accepted')
