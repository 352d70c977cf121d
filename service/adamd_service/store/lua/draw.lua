-- Notes who is asked in the open round, unless it is known already: the first drawing counts.
--
-- KEYS  1 head   2 round
-- ARGV  1 nonce  2 incarnation that the head must have  3 round and 4 tries that it must have
--       5 clients that are asked to train, and 6 to evaluate, as lists ("": all)
-- Returns {nonce, verdict}: drawn (also by another) | moved
local head_key, round_key = KEYS[1], KEYS[2]
local nonce, expected_incarnation, number, tries, cohort, evaluators = unpack(ARGV)

local round_number, round_tries, drawn = unpack(redis.call('HMGET', round_key, 'number', 'tries', 'drawn'))
if redis.call('HGET', head_key, 'incarnation') ~= expected_incarnation or round_number ~= number
  or round_tries ~= tries then
  return {nonce, 'moved'}
end
if not drawn then
  redis.call('HSET', round_key, 'drawn', '1', 'cohort', cohort, 'evaluators', evaluators)
end
return {nonce, 'drawn'}
