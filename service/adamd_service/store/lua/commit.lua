-- Commits one step, or says why not. No other script moves a session to its next step.
--
-- KEYS  1 head   2 ring   3 record   4 fence of the attempt   5 idempotency   6 bulk token
--       7… chunks of the body; where the step closes a round: 7 round   8 pending contributions   9 who was counted
--       10 garbage   11 evaluations   12 document of the round   13 the oldest document, which goes   14… chunks
-- ARGV  1 nonce
--       2 incarnation, 3 chain, 4 step and 5 settings revision that the head must have
--       6 step   7 ring slot  8 ring entry  9 attempt  10 chain  11 record's meta  12 inline body ("" if in chunks)
--       13 settings ("" if unchanged)  14 settings revision  15 bytes of the body
--       16 idempotency value ("" if none)  17 seconds that it lasts
--       18 progress: 16 digits of its sum, then its text ("" if unchanged)
--       19 seal of the settings ("" if unchanged)
--       20 bulk token that the session must have ("": the record names no extent of a shared store)
--       21 token that the frozen round must have ("": the session has no rounds)  22 document of the round
--       23 object: each member's name to its digest and step  24 first round that stays known  25 config and
--       26 clip norm ("" if none) of the next round
--       27… bytes of each chunk
-- Returns {nonce, verdict[, detail]}: committed | again | fenced | idempotency (its value) | moved | thawed | chunks
--
-- Idempotent by attempt: the same attempt again answers "again". Everything that can fail stands before the first
-- write: a step counts together with its Idempotency-Key, or not at all. The first write is one that a full store
-- refuses (SET and HSET may enlarge it, PERSIST may not), so a refusal leaves nothing half done.
local head_key, ring_key, record_key, fence_key, idempotency_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local bulk_key = KEYS[6]
local nonce = ARGV[1]
local expected_incarnation, expected_chain, expected_step, expected_revision = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local step, ring_slot, ring_entry, attempt, chain = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local meta, inline_body = ARGV[11], ARGV[12]
local settings, revision, body_bytes = ARGV[13], ARGV[14], tonumber(ARGV[15])
local idempotency, idempotency_seconds = ARGV[16], ARGV[17]
local progress, seal, bulk_token = ARGV[18], ARGV[19], ARGV[20]
local round_token, document, counted_text, oldest_round = ARGV[21], ARGV[22], ARGV[23], tonumber(ARGV[24])
local config, clip_norm = ARGV[25], ARGV[26]
local round_key, pending_key, counted_key, garbage_key, evaluations_key, document_key, old_key = KEYS[7], KEYS[8],
  KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local keys_before_chunks, args_before_chunks = round_token ~= '' and 13 or 6, 26

local incarnation, head_chain, head_step, head_revision, parameters_missing, log_bytes = unpack(redis.call('HMGET',
  head_key, 'incarnation', 'chain', 'step', 'settings_revision', 'parameters_missing', 'log_bytes'))
-- A record without its head is left by an earlier call that the ACL denied a command halfway: it is written again.
if redis.call('HGET', record_key, 'attempt') == attempt and (tonumber(head_step or '') or -1) >= tonumber(step) then
  return {nonce, 'again'}
end
if redis.call('EXISTS', fence_key) == 1 then
  return {nonce, 'fenced'}
end
if idempotency ~= '' then
  local known = redis.call('GET', idempotency_key)
  if known then
    return {nonce, 'idempotency', known}
  end
end
if incarnation ~= expected_incarnation or head_chain ~= expected_chain or head_step ~= expected_step
  or head_revision ~= expected_revision or parameters_missing ~= '0' then
  return {nonce, 'moved'}
end
local members, counted = {}, {}
if round_token ~= '' then
  local token, number, members_text = unpack(redis.call('HMGET', round_key, 'token', 'number', 'members'))
  if token ~= round_token or number ~= step then
    return {nonce, 'thawed'}
  end
  members, counted = cjson.decode(members_text), cjson.decode(counted_text)
  -- They fail where a key is of another type, before anything is written.
  redis.call('HLEN', pending_key)
  redis.call('HLEN', counted_key)
  redis.call('LLEN', garbage_key)
end
-- A later start has the bulk directory, and may have used the extent for something else.
if bulk_token ~= '' and redis.call('GET', bulk_key) ~= bulk_token then
  return {nonce, 'chunks'}
end
for i = 1, #KEYS - keys_before_chunks do
  if redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~= tonumber(ARGV[args_before_chunks + i]) then
    return {nonce, 'chunks'}
  end
end
-- Fails where the ring is of another type, before anything is written.
redis.call('HLEN', ring_key)
-- The bytes in the log only say when a snapshot is due: a damaged number starts again at 0.
local logged = tonumber(log_bytes)
logged = string.format('%.0f', (logged and logged >= 0 and logged < 2^53 and logged or 0) + body_bytes)

redis.call('HSET', record_key, 'meta', meta, 'attempt', attempt, 'chain', chain, 'inline', inline_body)
for i = 1, #KEYS - keys_before_chunks do
  redis.call('PERSIST', KEYS[keys_before_chunks + i])
end
redis.call('HSET', ring_key, ring_slot, ring_entry)
redis.call('HSET', head_key, 'step', step, 'chain', chain, 'prev_chain', expected_chain, 'log_bytes', logged)
if settings ~= '' then
  redis.call('HSET', head_key, 'settings', settings, 'settings_revision', revision, 'sealed', seal)
end
if progress ~= '' then
  redis.call('HSET', head_key, 'progress', string.sub(progress, 17), 'progressed', string.sub(progress, 1, 16))
end
if idempotency ~= '' then
  redis.call('SET', idempotency_key, idempotency, 'EX', idempotency_seconds)
end
if round_token ~= '' then
  local time = redis.call('TIME')
  local now = string.format('%d.%06d', time[1], time[2])
  for _, member in ipairs(redis.call('HKEYS', counted_key)) do
    if tonumber(string.match(member, '^%d+')) < oldest_round then
      redis.call('HDEL', counted_key, member)
    end
  end
  -- Nobody's update outlives its use. A contribution's text is joined: cjson would turn an empty list into an object.
  for _, member in ipairs(members) do
    local contribution = redis.call('HGET', pending_key, member)
    if contribution then
      redis.call('RPUSH', garbage_key, '{"kind":"contribution","at":' .. time[1] .. ',"name":"' .. member
        .. '","contribution":' .. contribution .. '}')
    end
    redis.call('HDEL', pending_key, member)
    redis.call('HSET', counted_key, member, counted[member] or '')
  end
  redis.call('DEL', evaluations_key, old_key, round_key)
  redis.call('SET', document_key, document)
  redis.call('HSET', round_key, 'number', string.format('%.0f', tonumber(step) + 1), 'opened_at', now, 'tries', '0',
    'first_at', redis.call('HLEN', pending_key) > 0 and now or '', 'config', config, 'clip_norm', clip_norm)
end
return {nonce, 'committed'}
