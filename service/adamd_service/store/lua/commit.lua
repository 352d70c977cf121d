-- Commits one step, or says why not. The only place where a session moves on (laws 3 and 5).
--
-- KEYS  1 head   2 ring   3 record   4 fence   5 idempotency   6… chunks of the body
-- ARGV  1 nonce  2 incarnation  3 previous chain  4 previous step  5 settings revision expected
--       6 step   7 ring slot  8 ring entry  9 attempt  10 chain  11 record meta  12 inline body ("" if in chunks)
--       13 settings ("" if unchanged)  14 settings revision  15 bytes of the body
--       16 idempotency value ("" if none)  17 its seconds  18 sum and progress ("" if unchanged)
--       19 seal of the settings ("" if unchanged)  20… lengths of the chunks
-- Returns {nonce, verdict[, detail]}: committed | again | fenced | idempotency | moved | chunks
--
-- Idempotent by attempt: the same attempt again answers "again". Everything that can fail stands before the first
-- write: a step counts as a whole, with its key, or not at all. The first write is the one that a full store
-- refuses (SET and HSET may enlarge it, PERSIST may not): so a refusal leaves nothing half done.
local nonce = ARGV[1]
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'chain', 'step', 'settings_revision', 'parameters_missing',
  'log_bytes')
-- A record alone may be what an earlier call left that was denied a command in its middle (ACL): then the head is not
-- there yet, and it is written again.
if redis.call('HGET', KEYS[3], 'attempt') == ARGV[9] and (tonumber(head[3] or '') or -1) >= tonumber(ARGV[6]) then
  return {nonce, 'again'}
end
if redis.call('EXISTS', KEYS[4]) == 1 then
  return {nonce, 'fenced'}
end
if ARGV[16] ~= '' then
  local known = redis.call('GET', KEYS[5])
  if known then
    return {nonce, 'idempotency', known}
  end
end
if head[1] ~= ARGV[2] or head[2] ~= ARGV[3] or head[3] ~= ARGV[4] or head[4] ~= ARGV[5] or head[5] ~= '0' then
  return {nonce, 'moved'}
end
for i = 20, #ARGV do
  if redis.call('STRLEN', KEYS[i - 14]) ~= tonumber(ARGV[i]) then
    return {nonce, 'chunks'}
  end
end
redis.call('HLEN', KEYS[2])
-- How much there is in the log only says when a snapshot is due: what is no such number begins again.
local logged = tonumber(head[6])
logged = string.format('%.0f', (logged and logged >= 0 and logged < 2^53 and logged or 0) + tonumber(ARGV[15]))
redis.call('HSET', KEYS[3], 'meta', ARGV[11], 'attempt', ARGV[9], 'chain', ARGV[10], 'inline', ARGV[12])
for i = 20, #ARGV do
  redis.call('PERSIST', KEYS[i - 14])
end
redis.call('HSET', KEYS[2], ARGV[7], ARGV[8])
redis.call('HSET', KEYS[1], 'step', ARGV[6], 'chain', ARGV[10], 'prev_chain', ARGV[3], 'log_bytes', logged)
if ARGV[13] ~= '' then
  redis.call('HSET', KEYS[1], 'settings', ARGV[13], 'settings_revision', ARGV[14], 'sealed', ARGV[19])
end
if ARGV[18] ~= '' then
  redis.call('HSET', KEYS[1], 'progress', string.sub(ARGV[18], 17), 'progressed', string.sub(ARGV[18], 1, 16))
end
if ARGV[16] ~= '' then
  redis.call('SET', KEYS[5], ARGV[16], 'EX', ARGV[17])
end
return {nonce, 'committed'}
