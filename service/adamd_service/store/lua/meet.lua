-- Makes a client known, and opens the session's next round where nobody has asked for it yet.
--
-- KEYS  1 head   2 round   3 clients
-- ARGV  1 nonce  2 incarnation that the head must have  3 client  4 clients that a session may have  5 config of a round
-- Returns {nonce, verdict}: met (also again) | full | moved
local head_key, round_key, clients_key = KEYS[1], KEYS[2], KEYS[3]
local nonce, expected_incarnation, client, most_clients, config = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

local incarnation, step = unpack(redis.call('HMGET', head_key, 'incarnation', 'step'))
if incarnation ~= expected_incarnation then
  return {nonce, 'moved'}
end
if redis.call('SISMEMBER', clients_key, client) == 0 and redis.call('SCARD', clients_key) >= most_clients then
  return {nonce, 'full'}
end
local number = string.format('%.0f', tonumber(step) + 1)
if redis.call('HGET', round_key, 'number') ~= number then
  local time = redis.call('TIME')
  redis.call('HSET', round_key, 'number', number, 'opened_at', string.format('%d.%06d', time[1], time[2]),
    'tries', '0', 'first_at', '', 'config', config, 'clip_norm', '')
end
redis.call('SADD', clients_key, client)
return {nonce, 'met'}
