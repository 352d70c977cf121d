-- Tells where the open round stands, and what is known of one client, or of all, at one moment. It writes nothing.
--
-- KEYS  1 head   2 round   3 pending contributions   4 who was counted   5 clients   6 evaluations
-- ARGV  1 nonce  2 client ("" if none)  3 round of its contribution (0: the open one)  4 "1" if all of them are told
-- Returns {nonce, "standing", incarnation, step, chain, now, contributions that wait, that very one, "digest step" of
--          it, "1" if the client is known, what it has evaluated, lists of all contributions and all evaluations by
--          name, then names and values of the round's fields}, each "" where it is not there; {nonce, "absent"} without
--          a head
local head_key, round_key, pending_key, counted_key, clients_key, evaluations_key = unpack(KEYS)
local nonce, client, round, all = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

local incarnation, step, chain = unpack(redis.call('HMGET', head_key, 'incarnation', 'step', 'chain'))
if not incarnation then
  return {nonce, 'absent'}
end
local open = string.format('%.0f', (tonumber(step) or 0) + 1)
local member = (round == '0' and open or round) .. ':' .. client
local time = redis.call('TIME')
local answer = {nonce, 'standing', incarnation, step or '', chain or '', string.format('%d.%06d', time[1], time[2]),
  tostring(redis.call('HLEN', pending_key)), redis.call('HGET', pending_key, member) or '',
  redis.call('HGET', counted_key, member) or '', tostring(redis.call('SISMEMBER', clients_key, client)),
  redis.call('HGET', evaluations_key, client) or '', all and redis.call('HGETALL', pending_key) or {},
  all and redis.call('HGETALL', evaluations_key) or {}}
for _, text in ipairs(redis.call('HGETALL', round_key)) do
  answer[#answer + 1] = text
end
return answer
