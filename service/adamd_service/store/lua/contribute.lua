-- Takes a contribution to a round, or says why not. It is durable from here on.
--
-- KEYS  1 head   2 round   3 pending contributions   4 who was counted   5 clients   6 bulk token
--       7 the contribution's bytes, where they are small   8… chunks
-- ARGV  1 nonce  2 incarnation that the head must have  3 round  4 client  5 contribution, as text  6 digest  7 attempt
--       8 its bytes ("" if in bulk)  9 config of a round that is opened by this
--       10 rounds that a contribution may be behind  11 "1" if a frozen round takes contributions for the next one
--       (but the last one)
--       12 contributions that a round takes  13 clients that a session may have  14 last round (0: there is none)
--       15 "1" if clients are drawn
--       16 bulk token that the session must have ("": no extent of a shared store is named)  17… bytes of each chunk
-- Returns {nonce, verdict, contributions that wait, open round[, "digest step"]}:
--         accepted (also again, by this attempt) | duplicate | conflict | ahead | closed | over | not_selected | full
--         | moved | chunks
--
-- Everything that can fail stands before the first write.
local head_key, round_key, pending_key, counted_key, clients_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local bulk_key, bytes_key = KEYS[6], KEYS[7]
local nonce, expected_incarnation, round, client, contribution = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local digest, attempt, bytes, config = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local most_behind, goes_on, most, most_clients = tonumber(ARGV[10]), ARGV[11] == '1', tonumber(ARGV[12]), ARGV[13]
local last_round, is_drawn, bulk_token = tonumber(ARGV[14]), ARGV[15] == '1', ARGV[16]
local keys_before_chunks, args_before_chunks = 7, 16
local member = ARGV[3] .. ':' .. client

local incarnation, step = unpack(redis.call('HMGET', head_key, 'incarnation', 'step'))
if incarnation ~= expected_incarnation then
  return {nonce, 'moved'}
end
local open = tonumber(step) + 1
local number, token, cohort = unpack(redis.call('HMGET', round_key, 'number', 'token', 'cohort'))
local received, counted = redis.call('HLEN', pending_key), redis.call('HGET', counted_key, member)
local function answer(verdict, detail)
  return {nonce, verdict, tostring(received), string.format('%.0f', open), detail}
end
-- Nothing else in a contribution's text has this form: metrics are numbers, and quotes within their names are escaped.
local known = redis.call('HGET', pending_key, member)
if known then
  local same = string.find(known, '"digest":"' .. digest .. '"', 1, true)
  local own = string.find(known, '"attempt":"' .. attempt .. '"', 1, true)
  return answer(same and (own and 'accepted' or 'duplicate') or 'conflict')
end
if round > open then
  return answer('ahead')
end
if counted or round < open - most_behind or (token and (not goes_on or open == last_round)) then
  return answer('closed', counted or nil)
end
if last_round ~= 0 and open > last_round then
  return answer('over')
end
if is_drawn and not string.find(cohort or '', '"' .. client .. '"', 1, true) then
  return answer('not_selected')
end
if received >= most then
  return answer('full')
end
-- A later start has the bulk directory, and may have used the extent for something else.
if bulk_token ~= '' and redis.call('GET', bulk_key) ~= bulk_token then
  return answer('chunks')
end
for i = 1, #KEYS - keys_before_chunks do
  if redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~= tonumber(ARGV[args_before_chunks + i]) then
    return answer('chunks')
  end
end
local knows = redis.call('SCARD', clients_key) < tonumber(most_clients)

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
redis.call('HSET', pending_key, member, contribution)
if number ~= string.format('%.0f', open) then
  redis.call('HSET', round_key, 'number', string.format('%.0f', open), 'opened_at', now, 'tries', '0', 'config', config,
    'first_at', '', 'clip_norm', '')
end
if received == 0 then
  redis.call('HSET', round_key, 'first_at', now)
end
if bytes ~= '' then
  redis.call('SET', bytes_key, bytes)
end
for i = 1, #KEYS - keys_before_chunks do
  redis.call('PERSIST', KEYS[keys_before_chunks + i])
end
if knows then
  redis.call('SADD', clients_key, client)
end
received = received + 1
return answer('accepted')
