-- Fixes the members of a round that is about to be closed, so that every replica makes the same step of it.
--
-- KEYS  1 head   2 round   3 pending contributions
-- ARGV  1 nonce  2 incarnation that the head must have  3 round  4 token  5 why: quorum | deadline | hand
--       6 contributions that are needed  7 seconds from the first one to the deadline  8 replica
-- Returns {nonce, verdict, contributions that wait}: frozen (also by another) | few | early | moved
local head_key, round_key, pending_key = KEYS[1], KEYS[2], KEYS[3]
local nonce, expected_incarnation, round, token, why = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local least, deadline_seconds, replica = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]

local incarnation, step = unpack(redis.call('HMGET', head_key, 'incarnation', 'step'))
local number, known_token, first_at = unpack(redis.call('HMGET', round_key, 'number', 'token', 'first_at'))
local members = redis.call('HKEYS', pending_key)
local received = tostring(#members)
if incarnation ~= expected_incarnation or tonumber(step) + 1 ~= tonumber(round) then
  return {nonce, 'moved', received}
end
if known_token then
  return {nonce, 'frozen', received}
end
-- Where the hash is an earlier round's, nobody has contributed to this one yet.
if #members < least or number ~= round then
  return {nonce, 'few', received}
end
local time = redis.call('TIME')
if why == 'deadline' and tonumber(time[1]) + tonumber(time[2]) / 1e6 < tonumber(first_at) + deadline_seconds then
  return {nonce, 'early', received}
end

redis.call('HSET', round_key, 'token', token, 'why', why, 'frozen_at', string.format('%d.%06d', time[1], time[2]),
  'replica', replica, 'members', cjson.encode(members))
return {nonce, 'frozen', received}
